"""A model as it lies on disk, whatever its layout; no tensor has been read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from candela.checkpoints.contents import Found


@dataclass(frozen=True)
class Part:
    """One component as it lies on disk.

    Attributes:
        path: its folder or file, for messages.
        library, class_name: of the class it loads into, as model_index.json names them.
        config: what the class is built from, parsed.
        files: where the weights are; empty for tokenizers and schedulers.
        found: the component inside a weight file; None in a folder, from which the library itself loads.
    """

    path: Path
    library: str
    class_name: str
    config: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    found: Found | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What the files of one model say of themselves.

    Attributes:
        name: what the user calls it.
        path: of the folder, or of the file that says most, for messages.
        pipeline: diffusers' class that the model is made for.
        parts: by the pipeline's own names (transformer, text_encoder, ...).
        defaults: the model's own preferred settings (`candela.json`), empty for most.
        assumed: what the files do not tell and was taken for granted, as a sentence; empty for most.
        options: what else model_index.json says to the pipeline, such as `force_zeros_for_empty_prompt`; a
            component that is null there is None here.
    """

    name: str
    path: Path
    pipeline: str
    parts: dict[str, Part]
    defaults: dict[str, Any] = field(default_factory=dict)
    assumed: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all weights, as stored."""
        files = {file for part in self.parts.values() for file in part.files}
        return sum(file.stat().st_size for file in files)
