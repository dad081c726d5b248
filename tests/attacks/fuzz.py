"""Mutated headers and pictures, until one escapes the error tree: `make fuzz`, or `python -m tests.attacks.fuzz FORMAT
RUNS`.

FORMAT is safetensors or gguf (headers of weight files), record (PNGs that carry one) or picture (what `--init` reads:
PNG, JPEG, WebP). Guided by coverage where atheris is installed (`pip install candela[fuzz]`), else, and
with `--blind`, seeded mutations alone. What fails is written to build/fuzz; `python -m tests.attacks.fuzz FILE` runs
it again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.attacks import files, pictures
from tests.attacks.pictures import SHARED
from tests.attacks.worker import memory

RUNS = 200_000
HEADERS = ("safetensors", "gguf")
FORMATS = (*HEADERS, *pictures.SEEDS)
SECONDS = {"safetensors": 1, "gguf": 1, "record": 2, "picture": 2}  # of processor time for one input
MEGABYTES = {"safetensors": 700, "gguf": 700, "record": 1200, "picture": 1200}  # of the process, libraries included
FOUND = Path(__file__).parents[2] / "build" / "fuzz"


def target(form: str) -> Callable[[bytes], None]:
    return header_target() if form in HEADERS else pictures.target(form)


def header_target() -> Callable[[bytes], None]:
    """What is fuzzed: bytes -> everything that identify says of them. Only CandelaError may come out of it."""
    from candela.checkpoints.configuration import config_metadata
    from candela.checkpoints.contents import read_contents
    from candela.checkpoints.identity import identify
    from candela.checkpoints.lora.file import lora_of
    from candela.checkpoints.resemblance import describe
    from candela.checkpoints.sanity import check_config
    from candela.cli.identify import described
    from candela.errors import CandelaError

    handle, name = tempfile.mkstemp(suffix=".fuzz", dir=SHARED if SHARED.is_dir() else None)
    os.close(handle)
    path = Path(name)

    def run(data: bytes) -> None:
        path.write_bytes(data)
        steps: tuple[Callable[[], object], ...] = (lambda: described(identify(path)),)
        try:
            contents = read_contents(path)
            steps += (lambda: config_metadata(contents.header), lambda: lora_of(contents.header))
            for found in contents.found:
                steps += (lambda found=found: check_config(path, found.config, len(found.weights)),)
            describe(contents)
        except CandelaError:
            pass
        for step in steps:
            try:
                step()
            except CandelaError as error:
                if len(str(error)) > 5000:
                    raise AssertionError("a message as long as a book") from error

    return run


def peak_megabytes() -> float:
    """Of this process. What the kernel says of resources begins with the peak of the process that started it."""
    if sys.platform == "linux":
        return memory("VmHWM") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


longest = 0.0  # processor time that one input took


def limited(form: str) -> Callable[[bytes], None]:
    """Writes down what fails, or takes too long or too much, and fails."""
    run, seconds, megabytes = target(form), SECONDS[form], MEGABYTES[form]

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGVTALRM, late)

    def guarded(data: bytes) -> None:
        global longest
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        started = time.process_time()
        try:
            run(data)
            took = time.process_time() - started
            longest = max(longest, took)
            if took > seconds:  # within a library, where no signal is heard
                late()
            peak = peak_megabytes()
            if peak > megabytes:
                raise MemoryError(f"the process took {peak:.0f} MB")
        except BaseException:
            FOUND.mkdir(parents=True, exist_ok=True)
            place = FOUND / f"{form}-{zlib.crc32(data):08x}"
            place.write_bytes(data)
            print(f"to run it again: python -m tests.attacks.fuzz {place}", file=sys.stderr)
            raise
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    return guarded


def seeds(form: str) -> list[bytes]:
    """Small files that nothing is wrong with, or one thing: components, a LoRA, quantised layers, metadata."""
    if form in pictures.SEEDS:
        return pictures.SEEDS[form]()
    nothing = files.NOTHING
    lists: list[dict] = [dict.fromkeys(files.ALL_MARKS, nothing)]
    for component in ("transformer", "text_encoder", "vae"):
        names = list(files.names_of(component).items())
        lists.append(
            dict(names[:: max(1, len(names) // 12)]) | {n: t for n, t in names if "layers.0" in n or "conv_" in n}
        )
    lists += [
        {"lora_unet_layers_0_attention_to_q.lora_down.weight": nothing, "a.layers.0.lora_B.weight": nothing},
        {"a.weight": ("F8_E4M3", [2, 2], bytes(4)), "a.weight_scale": files.ONE, "a.comfy_quant": files.described({})},
    ]
    if form == "gguf":
        tensors = [[files.tensor(name, (0,)) for name in names] for names in lists]
        entries = [
            files.kv("general.alignment", 4, struct.pack("<I", 32)),
            files.kv("general.name", 8, files.text("turbo")),
            files.kv("config", 8, files.text('{"transformer": {"dim": 3, "n_layers": 2}}')),
            files.kv("words", 9, files.list_of(8, 2, files.text("a") + files.text("b"))),
            files.kv("lists", 9, files.list_of(9, 1, files.list_of(0, 3, b"abc"))),
        ]
        return [files.gguf(entries[: k + 1], some) for k, some in enumerate(tensors)] + [files.sound_gguf()]
    metadata = {"config": '{"transformer": {"dim": 3, "n_layers": 2}}', "modelspec.title": "turbo", "format": "pt"}
    settings = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 4, "alpha_pattern": {"layers.0": 2}})}
    return [files.plain()] + [files.file_of(some, metadata | settings if k else None) for k, some in enumerate(lists)]


WORDS = pictures.WORDS | {
    "gguf": [struct.pack("<Q", n) for n in (0, 1, 64, 65, 2**31, 2**32, 2**48, 2**63, 2**64 - 1)]
    + [struct.pack("<I", n) for n in range(14)],
    "safetensors": [b"[", b"]", b"{", b"}", b",", b":", b'"', b"-1", b"1e9", b"NaN", b"null", b"true", b"0", b"9" * 20,
                    b'"__metadata__"', b'"shape"', b'"dtype"', b'"data_offsets"', b'"F32"', b'"Q4_0"', b"layers.0.",
                    b"\\ud800", b"\\u0000", b"\xff", b"\xf0\x9f\x98\x80", b"9" * 5000],
}  # fmt: skip


def mutated(random: random.Random, corpus: list[bytes], form: str) -> bytes:
    """One of the corpus after a few edits; its header's length is usually made to fit again."""
    if form == "record" and random.random() < 0.6:
        return pictures.changed(random)
    data = bytearray(random.choice(corpus))
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        at = random.randrange(len(data) + 1)
        action = random.randrange(7)
        if action == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif action == 1 and at < len(data):
            data[at] = random.randrange(256)
        elif action == 2:
            data[at:at] = random.choice(WORDS[form])
        elif action == 3:
            word = random.choice(WORDS[form])
            data[at : at + len(word)] = word
        elif action == 4:
            del data[at : at + random.choice((1, 2, 8, 30))]
        elif action == 5:
            other = random.choice(corpus)
            start = random.randrange(len(other))
            data[at:at] = other[start : start + random.randrange(1, 60)]
        else:
            data[at : at + 1] = data[at : at + random.randrange(40)] * random.randrange(3)
    if form == "safetensors" and len(data) > 8 and random.random() < 0.8:
        end = data.rfind(b"}") + 1
        data[:8] = struct.pack("<Q", max(0, end - 8))
    if form in pictures.SEEDS:
        return pictures.repaired(bytes(data), random)
    return bytes(data)


def blind(form: str, runs: int, seed: int = 1) -> None:
    run, corpus, chance = limited(form), seeds(form), random.Random(seed)
    for data in corpus:
        run(data)
    for _ in range(runs):
        run(mutated(chance, corpus, form))


def guided(form: str, runs: int) -> None:
    """Ends the process."""
    import atheris  # type: ignore[import-not-found,unused-ignore]

    for name in [name for name in sys.modules if name.split(".")[0] == "candela"]:
        del sys.modules[name]  # what is imported already cannot be watched
    watched = (
        ["candela.checkpoints"] if form in HEADERS else ["candela.record", "candela.pictures", "candela.cli", "PIL"]
    )
    with atheris.instrument_imports(include=watched):
        run = limited(form)
    folder = tempfile.mkdtemp()
    for index, data in enumerate(seeds(form)):
        Path(folder, f"{index}").write_bytes(data)
    dictionary = Path(folder + ".words")
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS[form] if len(word) < 100)
    dictionary.write_text("".join(f'"{word}"\n' for word in escaped))
    chance, corpus = random.Random(1), seeds(form)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        """Half of the time libFuzzer's own, half of the time ours, which knows about the header's length."""
        chance.seed(seed)
        changed = atheris.Mutate(data, longest) if seed % 2 else mutated(chance, [data or corpus[0], *corpus[:1]], form)
        return changed[:longest]

    options = [
        f"-runs={runs}",
        f"-dict={dictionary}",
        "-max_len=20000",
        "-timeout=10",
        "-rss_limit_mb=0",
        "-print_final_stats=1",
    ]
    FOUND.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={FOUND}/", folder], run, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", help=f"{', '.join(FORMATS)}, or a file to run again")
    parser.add_argument("runs", nargs="?", type=int, default=RUNS)
    parser.add_argument("--blind", action="store_true", help="without coverage")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.what not in FORMATS:
        data, form = Path(options.what).read_bytes(), Path(options.what).name.partition("-")[0]
        target(form if form in FORMATS else "safetensors")(data)
        print("it ends in our error, or in an answer")
        return
    try:
        import atheris  # noqa: F401
    except ImportError:
        options.blind = True
    started = time.perf_counter()
    if not options.blind:
        guided(options.what, options.runs)
    blind(options.what, options.runs, options.seed)
    peak = peak_megabytes()
    seconds = time.perf_counter() - started
    print(
        f"{options.what}: {options.runs} mutations in {seconds:.0f} s, the longest {longest:.2f} s, {peak:.0f} MB: "
        "nothing escaped"
    )


if __name__ == "__main__":
    main()
