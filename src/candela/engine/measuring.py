"""What a stage costs, without its weights: its own code runs on tensors that have shapes and no values.

Nothing here knows an architecture. The components are built from their configurations as fake tensors (torch's
`FakeTensorMode`), the family's own code runs on them, and every operation that reaches torch is seen: which storages
live, how many floating point operations it takes (torch's `flop_counter`), how many bytes it moves.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from candela.checkpoints import Components
from candela.engine.kernels import attention_workspace, laid_out, nbytes, workspace
from candela.engine.skeletons import Skeleton
from candela.engine.tiling import tiling
from candela.families import Conditioning, Family

PROMPT = (
    "a lighthouse on a cliff at dusk, oil on canvas, heavy waves breaking on dark rocks below, a warm lamp behind glass"
)


@dataclass(frozen=True)
class Cost:
    """Of one stage.

    Attributes:
        peak_bytes: of all tensors that the stage makes, at its worst moment, with the workspace of convolutions.
        operations: (floating point operations, bytes read and written) of each operation.
    """

    peak_bytes: int
    operations: tuple[tuple[float, float], ...]

    @property
    def flops(self) -> float:
        return sum(flops for flops, _ in self.operations)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """By the roofline: each operation takes as long as its arithmetic or its memory traffic, the longer of the
        two (Williams, Waterman and Patterson, "Roofline", 2009). One after the other, as torch runs them."""
        return sum(max(f / flops_per_second, b / bytes_per_second) for f, b in self.operations)


@dataclass(frozen=True)
class Costs:
    """Of the stages of one picture: all prompts encoded, one of the denoising steps, and its picture decoded, whole
    or in overlapping pieces."""

    encode: Cost
    step: Cost
    decode: Cost
    tiled: Cost


def measure(
    family: Family, skeleton: Skeleton, *, width: int, height: int, guidance: float, device: str = "cpu"
) -> Costs:
    """Runs the stages on `skeleton` (about 5 s for a model of 6 billion parameters).

    `device` is the kind that is planned for, cpu or cuda, whatever this machine has (`kernels.py`).
    """
    parts, fake = skeleton.components, skeleton.mode
    negatives = ["blurry"] if family.guided(guidance) else None
    shape = (1, parts.vae.config.latent_channels, height // family.latent_factor, width // family.latent_factor)
    scheduler = copy.deepcopy(parts.scheduler)
    family.set_timesteps(scheduler, 2, torch.empty(shape))
    timestep = scheduler.timesteps[0]
    conditioning: list[Conditioning] = []

    def encode() -> None:
        conditioning.append(family.encode(parts, [PROMPT], negatives))

    def step() -> None:
        noise = torch.empty(shape)
        predict = family.predictor(parts, conditioning[0], guidance, noise.shape)
        noise - 0.1 * predict(noise, timestep)

    def decode(tiled: bool) -> Callable[[], None]:
        def run() -> None:
            with tiling(parts.vae, tiled):
                parts.vae.decode(torch.empty(shape, dtype=parts.vae.dtype), return_dict=False)[0].float()

        return run

    with torch.no_grad(), fake:
        stages = [_cost(stage, parts, device) for stage in (encode, step, decode(False), decode(True))]
    return Costs(*stages)


def _cost(stage: Callable[[], None], parts: Components, device: str) -> Cost:
    tally = Tally([tensor for module in parts.modules.values() for tensor in tensors(module)], device)
    with Fused(tally), tally:
        stage()
    return Cost(tally.peak, tuple(tally.operations))


def tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


class Tally(TorchDispatchMode):
    """Counts what lives while operations run; `weights` do not count."""

    def __init__(self, weights: Sequence[torch.Tensor], device: str):
        super().__init__()
        self.device = device
        self.live = dict.fromkeys((w.untyped_storage()._cdata for w in weights), 0)
        self.now = self.peak = 0
        self.operations: list[tuple[float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = laid_out(self.device, func, args, func(*args, **kwargs))
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        for tensor in made:
            self._made(tensor)
        if not made or func.is_view:
            return result
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        self.beside(workspace(self.device, func, args, result))
        self.count(func._overloadpacket, args, kwargs, result, sum(map(nbytes, [*given, *made])))
        return result

    def beside(self, size: int) -> None:
        """What is there for the moment of one operation."""
        self.peak = max(self.peak, self.now + size)

    def count(self, operation: Any, args: Any, kwargs: Any, result: Any, moved: float) -> None:
        counter = flop_registry.get(operation)
        self.operations.append((counter(*args, **kwargs, out_val=result) if counter else 0.0, moved))

    def _made(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) in self.live:
            return
        self.live[key] = storage.nbytes()
        self.now += self.live[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


class Fused(TorchFunctionMode):
    """One operation where fake tensors show the plain formula's many: attention, which keeps no matrix of scores on CPU
    and CUDA; on CUDA also the RMS norm."""

    def __init__(self, tally: Tally):
        super().__init__()
        self.tally = tally

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attention(**dict(zip(("query", "key", "value", "attn_mask"), args)) | kwargs)
        if func is functional.rms_norm and self.tally.device == "cuda":
            result = torch.empty_like(args[0])
            self.tally.operations.append((0.0, 2 * nbytes(result)))
            return result
        return func(*args, **kwargs)

    def _attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        self.tally.beside(attention_workspace(self.tally.device, result))
        # All heads of the queries meet all keys; grouped keys are shared, and not fewer products.
        flops = 2 * query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        self.tally.operations.append((flops, sum(map(nbytes, (query, key, value, result)))))
        return result
