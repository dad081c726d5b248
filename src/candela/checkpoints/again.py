"""Some of a component's tensors, read again from its files: for who has put them away meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import torch

from candela.checkpoints.architectures import Piece
from candela.checkpoints.assembling import files_for, places
from candela.checkpoints.checkpoint import Part
from candela.checkpoints.contents import Found
from candela.checkpoints.exhausted import ran_out
from candela.checkpoints.filling import dense, fitted_weights, pieces_of, shapes_of
from candela.checkpoints.packed import Packed, QuantizedLinear
from candela.checkpoints.reading import Wanted, read_tensors
from candela.errors import DamagedFile


class Files:
    """The files of a component; `names` are those of its parameters and buffers that can be read again."""

    def __init__(self, part: Part, files: tuple[Path, ...], own: _Own):
        self.part, self._own = part, own
        self.names = own.names
        self._written = {file: _written(file) for file in files}

    @classmethod
    def of(cls, part: Part, module: torch.nn.Module, dtype: torch.dtype) -> Files | None:
        """Those of `module`, as it was loaded from them in `dtype`, or would be. None where they do not hold its state
        to the letter: then the library made something else of them, which only it can make again."""
        files = part.files if part.found else files_for(part, dtype)
        own: _Own | None = _InFile(part.found, module) if part.found else _Folder.of(part, module, files)
        return None if own is None else cls(part, files, own)

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Nothing: the files have it."""

    @torch.inference_mode(False)  # who computes within it would get tensors that nobody may change outside
    @torch.no_grad()
    def read(self, names: Collection[str], device: torch.device) -> Mapping[str, torch.Tensor]:
        """-> those of `names` that the files hold, on `device`, in the precision that the module has them in.

        Raises:
            DamagedFile: a file that has changed, or cannot be read any more.
        """
        try:
            for file, written in self._written.items():
                if _written(file) != written:
                    raise DamagedFile(f"{file} has been changed since it was loaded. Load the model again")
            return self._own.read(self.names & set(names), device)
        except OSError as error:
            if ran_out(error):
                raise
            raise DamagedFile(f"{self.part.path} cannot be read any more ({error}). Put its files back") from error


def _written(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


class _Own(Protocol):
    """One layout of files."""

    names: frozenset[str]

    def read(self, names: Collection[str], device: torch.device) -> Mapping[str, torch.Tensor]: ...


class _Folder:
    """A diffusers folder, whose tensors have the module's names and shapes."""

    def __init__(self, wanted: Mapping[str, Wanted]):
        self._wanted = wanted
        self.names = frozenset(wanted)

    @classmethod
    def of(cls, part: Part, module: torch.nn.Module, files: tuple[Path, ...]) -> _Folder | None:
        # What is computed from the files (a quantiser's) or is one tensor of two names does not come from one place.
        if part.config.get("quantization_config") or getattr(module, "all_tied_weights_keys", None):
            return None
        found, state = places(module, files), module.state_dict(keep_vars=True)
        if found is None:
            return None
        return cls({name: Wanted(*source, state[name].dtype) for name, source in found.items()})

    def read(self, names: Collection[str], device: torch.device) -> Mapping[str, torch.Tensor]:
        return read_tensors({name: self._wanted[name] for name in names}, device)


class _InFile:
    """A component inside a weight file, which `filling.build` has filled a module from: so it fits."""

    def __init__(self, found: Found, module: torch.nn.Module):
        self._found, self._shapes = found, shapes_of(module)
        self._places = pieces_of(found, self._shapes)
        self._dtypes = {name: parameter.dtype for name, parameter in module.named_parameters()}
        self._stored = {
            name: stored for stored, pieces in self._places.items() for p in pieces for name in _state_of(module, p)
        }
        self.names = frozenset(self._stored)

    def read(self, names: Collection[str], device: torch.device) -> Mapping[str, torch.Tensor]:
        stored = {self._stored[name] for name in names}
        tensors: dict[str, torch.Tensor] = {}
        for fitted in fitted_weights(self._found, {name: self._places[name] for name in stored}, self._shapes):
            target, value = fitted.piece.name, fitted.value
            if value is None:
                raise DamagedFile(f"{self._found.header.path} has changed: {fitted.stored!r} does not fit any more")
            if isinstance(value, Packed) and target not in self._dtypes:
                owner = target.removesuffix(".weight")
                tensors |= {f"{owner}.{field}": tensor for field, tensor in value.tensors().items()}
            else:
                tensors[target] = dense(value, self._dtypes[target])
        return {name: tensor.to(device) for name, tensor in tensors.items() if name in names}


def _state_of(module: torch.nn.Module, piece: Piece) -> list[str]:
    """The names of what holds `piece`: its own, or those of a packed layer's tensors."""
    owner, _, leaf = piece.name.rpartition(".")
    layer = module.get_submodule(owner)
    if leaf == "weight" and isinstance(layer, QuantizedLinear):
        return [f"{owner}.{field}" for field in layer.packed.fields]
    return [piece.name]
