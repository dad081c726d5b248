"""What is compared with what."""

from __future__ import annotations

import copy
import gc
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from candela.bench.measuring import Side, Timing, alternate, flops, matmul_rate
from candela.bench.models import FULL, MIDDLE, Dimensions, Pair, demo_pair, random_pair, twin
from candela.checkpoints import Components
from candela.checkpoints.card_memory import RESERVED
from candela.engine import Engine, Request
from candela.engine.cards import Machine, free
from candela.engine.fast import can_compile, compile_blocks, pick
from candela.engine.fast.weights import round_weights
from candela.engine.ladder import Placement, Rung
from candela.engine.placing import Host, Shelf
from candela.engine.planning import measured
from candela.engine.residency import Placed
from candela.errors import InvalidRequest

# 20 words, about 30 tokens of the embedded model's tokenizer as of Qwen's; each run puts its number behind.
PROMPT = "a large red star in the top left corner on a blue background, a small green circle on the right"
Prompts = Callable[[int], str]  # run -> what it is to show
CAP = 10_000_000_000  # bytes, for weights that are streamed
SIDES = (512, 768, 1024, 2048)  # of the gpu suite's pictures


@dataclass(frozen=True)
class Work:
    """What every side of a case does: pictures of size x size, for each of `runs` after the warm-up its `prompt`."""

    size: int
    steps: int
    runs: int
    prompt: Prompts


Sides = Callable[[Work], dict[str, Side]]  # sides in other processes, by name


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        title: what was done.
        timings: by side; the last is the reference.
        reached: by side, the fraction of the measured matrix product rate; empty where it is not asked for.
    """

    title: str
    timings: dict[str, Timing]
    reached: dict[str, float]

    @property
    def reference(self) -> str:
        return list(self.timings)[-1]

    def ratio(self, side: str) -> float:
        """Of the medians: below 1, `side` is faster than the reference."""
        return self.timings[side].median / self.timings[self.reference].median


_CASES = itertools.count()


def prompts() -> Prompts:
    """Another prompt for each run, and for each case: nothing is taken from a cache."""
    case = next(_CASES)
    return lambda run: f"{PROMPT} {case} {run}"


def whole(pair: Pair, size: int, steps: int, prompt: Prompts | None = None) -> dict[str, Side]:
    """From a prompt to a picture, on both sides."""
    text = prompt or prompts()

    def candela(run: int) -> Any:
        request = Request(text(run), width=size, height=size, steps=steps, guidance=0.0, seed=run)
        return pair.engine.generate(request).images[0]

    def diffusers(run: int) -> Any:
        return pair.pipeline(
            text(run), width=size, height=size, num_inference_steps=steps, guidance_scale=0.0,
            generator=torch.Generator("cpu").manual_seed(run),
        ).images[0]  # fmt: skip

    return {"candela": candela, "diffusers": diffusers}


def text_only(pair: Pair, again: bool = False) -> dict[str, Side]:
    """The prompt's part alone; `again`, with a prompt that was encoded before."""
    text = prompts()

    def candela(run: int) -> Any:
        return pair.engine.encode([text(0 if again else run)])

    @torch.no_grad()
    def diffusers(run: int) -> Any:
        return pair.pipeline.encode_prompt(
            text(0 if again else run), device=pair.engine.device, do_classifier_free_guidance=False
        )

    return {"candela": candela, "diffusers": diffusers}


def quick(runs: int) -> Iterator[Case]:
    pair, device = demo_pair(), torch.device("cpu")
    yield Case("demo, whole request, 128x128, 8 steps", alternate(whole(pair, 128, 8), runs, device), {})


def cpu(runs: int, dimensions: Dimensions = MIDDLE, size: int = 512, steps: int = 4) -> Iterator[Case]:
    """float32 on the processor."""
    device = torch.device("cpu")
    yield from quick(3 * runs)  # short ones need more
    pair = random_pair(dimensions, device, torch.float32)
    title = f"{dimensions.name}, {{}}, {size}x{size}, {steps} steps"
    yield Case(title.format("whole request"), alternate(whole(pair, size, steps), runs, device), {})
    yield Case(f"{dimensions.name}, text encoding", alternate(text_only(pair), runs, device), {})
    yield Case(f"{dimensions.name}, the same prompt again", alternate(text_only(pair, True), runs, device), {})


def gpu(
    runs: int,
    dimensions: Dimensions = FULL,
    sizes: tuple[int, ...] = SIDES,
    steps: int = 8,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.bfloat16,
    fast: str | None = None,
    others: Callable[[Pair], AbstractContextManager[Sides]] = lambda pair: nullcontext(lambda work: {}),
) -> Iterator[Case]:
    """Full-size weights made on the device; exact and fast mode beside diffusers, eager and with its blocks compiled.

    `fast` is the kind of fast mode, by default the card's best; `others` makes sides in other processes.
    """
    device = device or torch.device("cuda")
    pair = random_pair(dimensions, device, dtype)
    rate = matmul_rate(device, dtype)
    quantised = fast_engine(pair, dtype, fast)
    compiled = _compiled(pair) if can_compile(device) else None
    with others(pair) as further:
        for size in sizes:
            prompt = prompts()
            both = whole(pair, size, steps, prompt)
            sides = {"candela": both["candela"]}
            if quantised:
                mode, engine = quantised
                sides[f"candela {mode}"] = whole(replace(pair, engine=engine), size, steps, prompt)["candela"]
            elsewhere = further(Work(size, steps, runs, prompt))
            sides |= elsewhere
            if compiled:
                sides["diffusers compiled"] = whole(compiled, size, steps, prompt)["diffusers"]
            sides["diffusers"] = both["diffusers"]
            work = flops(partial(both["candela"], runs + 1))
            timings = alternate(sides, runs, device, elsewhere)
            reached = {name: work / timing.median / rate for name, timing in timings.items() if "candela" in name}
            yield Case(f"{dimensions.name}, {size}x{size}, {steps} steps", timings, reached)
    del pair, quantised, compiled, both, sides, elsewhere  # 40 GB: now for a machine with a small card
    gc.collect()
    yield streamed(runs, dimensions, min(sizes, key=lambda size: abs(size - 1024)), steps, device, dtype)


def streamed(
    runs: int, dimensions: Dimensions, size: int, steps: int, device: torch.device, dtype: torch.dtype
) -> Case:
    """Weights that come block by block, within `CAP`, beside resident ones: one after the other, for the same weights
    cannot be in both places."""
    pair = replace(random_pair(dimensions, device, dtype), pipeline=None)
    resident = alternate({"candela": whole(pair, size, steps)["candela"]}, runs, device)
    parts = {name: module for name, module in pair.engine.components.modules.items() if name != "vae"}
    pinned = device.type == "cuda"
    shelves = {name: Shelf(module, Host(module, pinned), device) for name, module in parts.items()}
    machine = Machine("", "cuda", CAP + RESERVED, free(torch.device("cpu")), 1.0, 1.0, 1.0)
    known = measured(pair.checkpoint, pair.engine.family, dtype, device.type, (size, size))
    rung = known.best(machine)[0]
    rung = rung if rung.placement is Placement.STREAMED else Rung(Placement.STREAMED)  # a small model would fit
    pair.engine.residency = placed = Placed(shelves, rung)
    placed.leave()
    with capped(device, CAP):
        side = whole(pair, size, steps)["candela"]
        timings = alternate({"candela streamed": side}, runs, device)
    title = f"{dimensions.name}, {size}x{size}, {steps} steps, {rung} within {CAP / 1e9:.0f} GB"
    return Case(title, timings | resident, {})


@contextmanager
def capped(device: torch.device, size: int) -> Iterator[None]:
    """The GPU gives no more than `size` bytes to this process meanwhile; elsewhere nothing is capped."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.mem_get_info(device)[1], device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def fast_engine(pair: Pair, dtype: torch.dtype, kind: str | None) -> tuple[str, Engine] | None:
    """The same model in fast mode -> (its name in records, engine); None where there is no fast mode."""
    exact = pair.engine
    try:
        chosen = pick(kind or True, exact.device, exact.family, pair.checkpoint)
    except InvalidRequest as error:
        warnings.warn(f"no fast mode here: {error}", stacklevel=2)
        return None
    assert chosen
    transformer = copy.deepcopy(exact.components.transformer)
    round_weights(transformer, chosen, dtype, exact.device)
    transformer.to(exact.device)
    if can_compile(exact.device):
        compile_blocks(transformer)
    components = Components({**exact.components.by_name, "transformer": transformer})
    mode = f"fast {chosen}"
    engine = Engine(pair.checkpoint, exact.family, components, exact.device, dtype, 0.0, mode=mode)
    return mode, engine


def _compiled(pair: Pair) -> Pair:
    """diffusers' own advice for speed: its repeated blocks compiled."""
    pipeline = type(pair.pipeline)(**{**pair.pipeline.components, "transformer": twin(pair.pipeline.transformer)})
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.compile_repeated_blocks()
    return replace(pair, pipeline=pipeline)
