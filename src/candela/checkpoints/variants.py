"""Models of one architecture that want other settings. Their weights look alike, so their names must tell."""

from __future__ import annotations

from dataclasses import dataclass
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
NAMING = (
    "general.name", "general.basename", "general.finetune", "general.source.url", "modelspec.title",
    "modelspec.architecture", "title", "name",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """Which one it is: `name` is turbo, base or empty; `evidence` is what told; `assumed` is what to warn of where
    nothing told."""

    name: str
    pipeline: str
    evidence: str = ""
    assumed: str = ""


def variant_of(family: str, header: Header | None) -> Variant:
    """From the names in a file's metadata, else from its own."""
    pipeline = PIPELINES[family]
    if family != "z-image":
        return Variant("", pipeline)
    if header is None:
        return Variant("turbo", pipeline)
    texts = {key: str(header.metadata[key]) for key in NAMING if key in header.metadata}
    for place, text in [*texts.items(), ("the file's name", header.path.name)]:
        plain = text.lower().replace("-", "").replace("_", "").replace(" ", "")
        if "turbo" in plain:
            return Variant("turbo", pipeline, f"{place}: {text}")
        if "zimage" in plain:
            return Variant("base", pipeline, f"{place}: {text}")
    assumed = (
        f"{header.path.name} does not say whether it is Z-Image Turbo or Base, whose weights look alike: taken for "
        "Turbo (8 steps, guidance 0). For Base ask for 50 steps and guidance 4, and put z_image into the file's name"
    )
    return Variant("turbo", pipeline, assumed=assumed)
