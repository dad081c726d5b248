"""Models of one architecture that want other settings. Their weights look alike, so their names must tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from candela.checkpoints.headers import Header

PIPELINES = {"z-image": "ZImagePipeline", "lumina-image-2": "Lumina2Pipeline", "lumina-next": "LuminaPipeline"}
# As published beside the weights.
SCHEDULERS: dict[tuple[str, str], dict[str, Any]] = {
    ("z-image", "turbo"): {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False},
    ("z-image", "base"): {"num_train_timesteps": 1000, "shift": 6.0, "use_dynamic_shifting": False},
    ("lumina-image-2", ""): {"num_train_timesteps": 1000, "shift": 6.0, "use_dynamic_shifting": False},
    ("lumina-next", ""): {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
}
# Metadata that may name the model: GGUF's, and the safetensors files' of several trainers.
NAMING = ("general.name", "general.basename", "general.finetune", "general.source.url", "modelspec.title", "title")


@dataclass(frozen=True)
class Variant:
    """Which one it is: `name` is turbo, base or empty; `evidence` is what told; `assumed` is what to warn of where
    nothing told."""

    name: str
    pipeline: str
    evidence: str = ""
    assumed: str = ""


def variant_of(family: str, path: Path, header: Header | None = None) -> Variant:
    """From the names in a file's metadata, else from its own or its folder's.

    `modelspec.architecture` is left out: it names the family."""
    pipeline = PIPELINES[family]
    if family != "z-image":
        return Variant("", pipeline)
    texts = {key: str(header.metadata[key]) for key in NAMING if key in header.metadata} if header else {}
    own = path.name if path.is_file() or path.name != "transformer" else path.parent.name
    named = [*texts.items(), ("the file's name", own)]
    plain = [(where, text, text.lower().translate(str.maketrans("", "", "-_ ."))) for where, text in named]
    for where, text, word in plain:
        if "deturbo" in word:  # trained back to many steps with guidance, on Turbo's weights
            return Variant("base", pipeline, f"{where}: {text}")
    for name, mark in (("turbo", "turbo"), ("base", "zimage")):
        for where, text, word in plain:
            if mark in word:
                return Variant(name, pipeline, f"{where}: {text}")
    assumed = (
        f"{own} does not say whether it is Z-Image Turbo or Base, whose weights look alike: taken for Turbo "
        "(8 steps, guidance 0). For Base put z_image into its name, or add scheduler=FOLDER of Base and ask for "
        "50 steps and guidance 4"
    )
    return Variant("turbo", pipeline, assumed=assumed)
