"""What `candela install` does beside huggingface_hub's `snapshot_download`: `python -m benchmarks.downloaders`.

Both download the same repository, of random bytes, from the tests' hub on this machine into a folder of the same
layout: huggingface_hub over HTTP (HF_HUB_DISABLE_XET=1) and, from benchmarks/xet_storage.py, by hf-xet. Measured is
what happens to somebody who downloads 20 GB: killed and started again, interrupted, a broken connection, a bit that
flips on the way, eight at once, a full disk, a file of one's own in the way, a hub that is silent or wants to be left
alone; and then speed and memory. "sent" is what the servers sent altogether, as a multiple of the repository: 1.0 is
every byte once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.xet_storage import Storage
from tests.install.conftest import LUMINA, ROOT, write_lumina
from tests.install.hub import Hub

PATIENCE = 30.0  # seconds, until what should have ended is stopped
LARGE = "transformer/diffusion_pytorch_model.safetensors"
THEIRS = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], allow_patterns=["*.json", "*.safetensors"], **{sys.argv[2]: sys.argv[3]})
"""
# Passes a signal on, and says the peak of memory.
RUN = """
import resource, signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGINT, lambda *_: child.send_signal(signal.SIGINT))
code = child.wait()
print("PEAK", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr, flush=True)
sys.exit(code % 256)
"""


@dataclass(frozen=True)
class Side:
    """One of those who download; with `cached`, to the hub's own cache instead of a folder."""

    name: str
    xet: bool = False
    cached: bool = False

    @property
    def ours(self) -> bool:
        return self.name == "candela"

    def models(self, home: Path) -> Path:
        return home / "data" / "models" / "diffusers" / "lumina-image-2"

    def start(self, home: Path, url: str, measured: bool = False) -> subprocess.Popen[str]:
        variables = {
            "PATH": os.environ["PATH"], "HOME": str(home), "CANDELA_HOME": str(home / "data"), "HF_ENDPOINT": url,
            "HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "2", "NO_PROXY": "*", "COLUMNS": "400",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "" if self.xet else "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.install.shell", "install", "lumina-image-2", "--yes", "--comfyui",
                   "none"] if self.ours else [
                   sys.executable, "-c", THEIRS, LUMINA, "cache_dir" if self.cached else "local_dir",
                   str(home / "cache" if self.cached else self.models(home))]  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-c", RUN, *command] if measured else command,
            cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip


SIDES = (Side("candela"), Side("huggingface_hub, HTTP"), Side("huggingface_hub, hf-xet", xet=True))
CACHED = (Side("huggingface_hub, HTTP, its cache", cached=True), Side("huggingface_hub, hf-xet, its cache", True, True))


@dataclass
class World:
    """A hub with a repository, its xet storage, and homes to download to."""

    folder: Path
    hub: Hub
    storage: Storage

    def __post_init__(self) -> None:
        self.repository = self.hub.root / LUMINA
        self.total = sum(p.stat().st_size for p in self.repository.rglob("*") if p.suffix in (".json", ".safetensors"))

    def home(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    @property
    def sent(self) -> int:
        return self.hub.bodies + self.storage.sent

    def times(self, number: int) -> float:
        return round(number / self.total, 2)

    @contextlib.contextmanager
    def slow(self, speed: float) -> Iterator[None]:
        self.hub.speed = self.storage.speed = int(speed)
        yield
        self.hub.speed = self.storage.speed = 0

    def good(self, side: Side, home: Path) -> bool:
        """Is the large file in place, and the published one?"""
        folder = next((home / "cache").glob("*/snapshots/*")) if side.cached else side.models(home)
        return (folder / LARGE).read_bytes() == (self.repository / LARGE).read_bytes()

    def left_over(self, side: Side, home: Path) -> int:
        """Bytes on the disk, below `home`, of what is neither the model nor small."""
        names = {path.name for path in self.repository.rglob("*.safetensors")}
        found = [p for p in home.rglob("*") if p.is_file() and not (
            p.name in names and p.is_relative_to(side.models(home)))]  # fmt: skip
        sizes = [min(p.stat().st_size, 512 * p.stat().st_blocks) for p in found]
        return sum(size for size in sizes if size > 1e6)


def finish(process: subprocess.Popen[str], patience: float = 600) -> tuple[int | str, str]:
    """-> exit code, the last thing that it said."""
    code: int | str
    try:
        output, _ = process.communicate(timeout=patience)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        code = f"still running after {patience:g} s"
    lines = [line.strip()[:300] for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("candela: ")]
    return code, (told or lines or [""])[-1]


@contextlib.contextmanager
def world(folder: Path, size: int) -> Iterator[World]:
    """The repository's transformer has `size` bytes."""
    write_lumina(folder / "root", transformer=(size,))
    with Hub(folder / "root") as hub:
        storage = Storage(folder / "root" / LUMINA / LARGE, folder / "xet")
        hub.page, hub.cas = 1000, storage.url
        hub.xet = {hub.commits[LUMINA, hub.commit(LUMINA)][LARGE].sha256: storage.hash}
        try:
            yield World(folder, hub, storage)
        finally:
            storage.close()


def stopped(world: World, side: Side, how: signal.Signals) -> dict[str, object]:
    """In the middle, and then the same command again."""
    home, before = world.home(), world.sent
    with world.slow(40e6):
        process = side.start(home, world.hub.url)
        while world.sent - before < world.total / 2 and process.poll() is None:
            time.sleep(0.005)
        world.hub.speed = world.storage.speed = int(world.total / 100)  # what is left would take most of a minute
        began = time.monotonic()
        process.send_signal(how)
        code, _ = finish(process, PATIENCE)
        took = time.monotonic() - began
    time.sleep(0.1)
    first = world.sent - before
    kept = world.left_over(side, home)
    again, said = finish(side.start(home, world.hub.url))
    return {"exit": code, "seconds until it ended": round(took, 1), "sent": world.times(first),
            "kept": world.times(kept), "sent by the second run": world.times(world.sent - before - first),
            "exit of the second run": again, "good": world.good(side, home),
            "left over": world.times(world.left_over(side, home)), **({"said": said} if again else {})}  # fmt: skip


def broken_connection(world: World, side: Side) -> dict[str, object]:
    """It ends in the middle of the large file, once."""
    home, before = world.home(), world.sent
    world.hub.fault("truncate", f"cdn/*/{LARGE}", after=4_000_000, times=1)
    world.storage.cut = 20_000_000 if side.xet else -1
    code, said = finish(side.start(home, world.hub.url))
    world.hub.faults.clear()
    good = code == 0 and world.good(side, home)
    return {"exit": code, "sent": world.times(world.sent - before), "good": good, "said": said}


def flipped_bit(world: World, side: Side) -> dict[str, object]:
    home = world.home()
    world.hub.fault("flip", f"cdn/*/{LARGE}", after=1_000_000, times=1)
    world.storage.flip = 1_000_000 if side.xet else -1
    code, said = finish(side.start(home, world.hub.url))
    world.hub.faults.clear()
    world.storage.flip = -1
    there = (side.models(home) / LARGE).exists()
    return {"exit": code, "in place": there, "good": there and world.good(side, home), "said": said}


def eight_at_once(world: World, side: Side) -> dict[str, object]:
    home, before = world.home(), world.sent
    with world.slow(40e6):
        processes = [side.start(home, world.hub.url) for _ in range(8)]
        codes = {finish(process)[0] for process in processes}
    return {"exits": sorted(map(str, codes)), "sent": world.times(world.sent - before), "good": world.good(side, home)}


def full_disk(world: World, side: Side) -> dict[str, object]:
    """It fills up in the middle of the download; then there is room, and the same command runs again."""
    home, before = world.home(), world.sent
    room = world.total // 1_000_000 + 150
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}m", "tmpfs", home], capture_output=True)
    if made.returncode:
        return {"not measured": made.stderr.decode().strip()}
    try:
        with world.slow(40e6):
            process = side.start(home, world.hub.url)
            while world.sent - before < world.total / 2 and process.poll() is None:
                time.sleep(0.005)
            with contextlib.suppress(OSError), (home / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1 << 20))
            code, said = finish(process)
        (home / "filler").unlink()
        time.sleep(0.1)
        first = world.sent
        again, _ = finish(side.start(home, world.hub.url))
        return {"exit": code, "said": said, "sent by the second run": world.times(world.sent - first),
                "exit of the second run": again, "good": world.good(side, home)}  # fmt: skip
    finally:
        subprocess.run(["umount", "-l", home], check=True)


def in_the_way(world: World, side: Side) -> dict[str, object]:
    """A file of one's own, of that name."""
    home = world.home()
    own = side.models(home) / LARGE
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    code, said = finish(side.start(home, world.hub.url))
    return {"exit": code, "kept": own.read_bytes() == b"mine", "said": said}


def silent_hub(world: World, side: Side) -> dict[str, object]:
    """It takes the connection, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        code, said = finish(side.start(world.home(), url), PATIENCE)
    return {"exit": code, "said": said}


def wait_an_hour(world: World, side: Side) -> dict[str, object]:
    world.hub.fault("status", "api/*", status=429, headers={"Retry-After": "3600"})
    code, said = finish(side.start(world.home(), world.hub.url), PATIENCE)
    world.hub.faults.clear()
    return {"exit": code, "said": said}


def speed(world: World, pairs: int) -> dict[str, object]:
    """Of the whole command, its start included; who is first changes."""
    seconds: dict[str, list[float]] = {side.name: [] for side in SIDES}
    peaks: dict[str, list[int]] = {side.name: [] for side in SIDES}
    for pair in range(pairs):
        for side in SIDES[pair % 3 :] + SIDES[: pair % 3]:
            home = world.home()
            os.sync()
            began = time.perf_counter()
            process = side.start(home, world.hub.url, measured=True)
            output, _ = process.communicate(timeout=600)
            seconds[side.name].append(round(time.perf_counter() - began, 2))
            assert process.returncode == 0, output
            peaks[side.name].append(int(output.split("PEAK")[1].split()[0]) // 1024)
            assert world.good(side, home)
            shutil.rmtree(home)
            print(f"{side.name:26} {seconds[side.name][-1]:6.2f} s", file=sys.stderr, flush=True)
    return {
        side.name: {"median MB/s": round(world.total / 1e6 / statistics.median(seconds[side.name])),
                    "seconds": seconds[side.name], "median peak MiB": statistics.median(peaks[side.name])}
        for side in SIDES
    }  # fmt: skip


def measure(place: Path, megabytes: int, pairs: int) -> dict[str, object]:
    events: dict[str, Callable[[World, Side], dict[str, object]]] = {
        "killed with -9 in the middle, then again": lambda w, s: stopped(w, s, signal.SIGKILL),
        "Ctrl-C in the middle, then again": lambda w, s: stopped(w, s, signal.SIGINT),
        "a connection that breaks once": broken_connection,
        "a bit that flips on the way": flipped_bit,
        "a disk that fills up, then again": full_disk,
        "a file of one's own in the way": in_the_way,
        "a hub that never answers": silent_hub,
        "a hub that asks to wait an hour": wait_an_hour,
    }
    result: dict[str, object] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("huggingface_hub", "hf-xet", "requests")},
        "load before": round(os.getloadavg()[0], 2),
        "MB": 100,
    }
    with world(place / "events", 100_000_000) as one:
        for name, event in events.items():
            result[name] = {side.name: event(one, side) for side in SIDES}
            print(name, json.dumps(result[name], indent=1), file=sys.stderr, flush=True)
        result["eight at once"] = {side.name: eight_at_once(one, side) for side in (*SIDES, *CACHED)}
        print(json.dumps(result["eight at once"], indent=1), file=sys.stderr, flush=True)
    shutil.rmtree(place / "events")
    with world(place / "speed", megabytes * 1_000_000) as one:
        result[f"speed and memory, {megabytes} MB"] = speed(one, pairs)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--size", type=int, default=1000, help="MB of the file for speed")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile (default: the system's)")
    parser.add_argument("--out", type=Path, help="a JSON file for the result, which is printed otherwise")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, it would be ignored below
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        result = json.dumps(measure(Path(place), args.size, args.pairs), indent=1)
    if args.out:
        args.out.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    main()
