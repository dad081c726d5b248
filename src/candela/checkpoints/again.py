"""Some of a component's tensors, read again from its files: for who has put them away meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from candela.checkpoints.architectures import Piece
from candela.checkpoints.assembling import _sources
from candela.checkpoints.checkpoint import Part
from candela.checkpoints.contents import Found
from candela.checkpoints.filling import LLAMA_NORM, _dense, _fitted
from candela.checkpoints.headers import read_header
from candela.checkpoints.packed import Packed, QuantizedLinear
from candela.checkpoints.reading import Wanted, read_tensors
from candela.checkpoints.tensors import stored_weights
from candela.errors import DamagedFile


class Files:
    """The files of `part`, for a module that was built for them; `names` are those of its parameters and buffers that
    can be read again."""

    def __init__(self, part: Part, module: torch.nn.Module):
        self.part = part
        self.state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.dtypes = {name: tensor.dtype for name, tensor in self.state.items()}
        self._wanted: dict[str, Wanted] = {}
        self._stored: dict[str, str] = {}
        if part.found:
            self._places = _places(part.found, module)
            for stored, pieces in self._places.items():
                for piece in pieces:
                    self._stored |= dict.fromkeys(_state_names(module, piece), stored)
            self._shapes = _shapes(module)
        else:
            files = {name: (file, t) for file in part.files for name, t in read_header(file).tensors.items()}
            sources = _sources(files, self.state, getattr(module, "base_model_prefix", ""))
            for own, stored in sources.items():
                if own in self.state:
                    self._wanted[own] = Wanted(*files[stored], self.dtypes[own])
        self.names = frozenset(self._wanted or self._stored)
        self.state = {}

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Nothing: the files have it."""

    def read(self, names: Collection[str], device: torch.device) -> Mapping[str, torch.Tensor]:
        """-> those of `names` that the files hold, on `device`, in the precision that the module has them in.

        Raises:
            DamagedFile: a file that has changed, or cannot be read any more.
        """
        try:
            if self.part.found:
                return {name: tensor.to(device) for name, tensor in self._unpacked(self.part.found, set(names)).items()}
            return read_tensors({name: self._wanted[name] for name in names if name in self._wanted}, device)
        except OSError as error:
            raise DamagedFile(f"{self.part.path} cannot be read any more ({error}). Put its files back") from error

    def _unpacked(self, found: Found, names: set[str]) -> dict[str, torch.Tensor]:
        needed = {self._stored[name] for name in names if name in self._stored}
        tensors: dict[str, torch.Tensor] = {}
        for stored, value in stored_weights(found, needed.__contains__):
            if found.header.format == "gguf" and found.architecture.norm_offset and LLAMA_NORM.match(stored):
                value = _dense(value, torch.float32) - found.architecture.norm_offset
            pieces = self._places[stored]
            for piece in pieces:
                fitted = _fitted(value, piece, pieces, self._shapes)
                owner = piece.name.rpartition(".")[0]
                if isinstance(fitted, Packed) and piece.name not in self.dtypes:
                    tensors |= {f"{owner}.{field}": tensor for field, tensor in fitted.tensors().items()}
                elif fitted is not None:
                    tensors[piece.name] = _dense(fitted, self.dtypes[piece.name])
        return {name: tensor for name, tensor in tensors.items() if name in names}


def _places(found: Found, module: torch.nn.Module) -> dict[str, list[Piece]]:
    shapes = _shapes(module)
    places = {}
    for stored in found.weights:
        pieces = found.architecture.pieces(stored)
        places[stored] = [p for p in pieces if p.name in shapes and not found.architecture.ignores(p.name)]
    return places


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Of every parameter; of packed layers, of the matrix that they stand for."""
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLinear):
            shapes[f"{name}.weight"] = (layer.out_features, layer.in_features)
    return shapes


def _state_names(module: torch.nn.Module, piece: Piece) -> list[str]:
    owner, _, leaf = piece.name.rpartition(".")
    layer = module.get_submodule(owner)
    if leaf == "weight" and isinstance(layer, QuantizedLinear):
        return [f"{owner}.{field}" for field in layer._packed.fields]
    return [piece.name]
