"""Which files a catalogue's model consists of, where they are published, and their checksums.

Sources: the repositories' own pages and the authors' manifest of Z-Image-Turbo, read in 2026-11. Where no checksum
stands here, the hub's own listing has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """One file: its repository and path there; the kind of ComfyUI's model folder that it belongs into; which
    component it is."""

    repository: str
    path: str
    kind: str
    component: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Publication:
    """One model.

    Attributes:
        split: precision -> files, the most precise first; empty for a model in diffusers layout.
        tokenizer: repository of a tokenizer folder that belongs to split files.
        repository: of a model in diffusers layout, taken whole.
        kind: of ComfyUI's model folders, for a whole repository.
    """

    split: dict[str, tuple[Published, ...]] = field(default_factory=dict)
    tokenizer: str = ""
    repository: str = ""
    kind: str = "diffusers"


TURBO = "Comfy-Org/z_image_turbo"
QWEN_FOLDER = "qwen_3_4b_tokenizer"  # beside the text encoder's files: they share the vocabulary


def _split(repository: str, transformer: str, text_encoder: str) -> tuple[Published, ...]:
    return (
        Published(repository, f"split_files/diffusion_models/{transformer}.safetensors", "diffusion_models",
                  "transformer"),
        Published(TURBO, f"split_files/text_encoders/{text_encoder}.safetensors", "text_encoders", "text_encoder"),
        Published(TURBO, "split_files/vae/ae.safetensors", "vae", "vae"),
    )  # fmt: skip


PUBLICATIONS = {
    "demo": Publication(),
    "z-image-turbo": Publication(
        {
            "bf16": _split(TURBO, "z_image_turbo_bf16", "qwen_3_4b"),
            "int8": _split(TURBO, "z_image_turbo_int8_convrot", "qwen_3_4b_fp8_mixed"),
            "nvfp4": _split(TURBO, "z_image_turbo_nvfp4", "qwen_3_4b_fp4_mixed"),
        },
        tokenizer="Tongyi-MAI/Z-Image-Turbo",
    ),
    "z-image": Publication(
        {
            "bf16": _split("Comfy-Org/z_image", "z_image_bf16", "qwen_3_4b"),
        },
        tokenizer="Tongyi-MAI/Z-Image-Turbo",
    ),
    "lumina-image-2": Publication(repository="Alpha-VLLM/Lumina-Image-2.0"),
    "lumina-next-sft": Publication(repository="Alpha-VLLM/Lumina-Next-SFT-diffusers"),
    "sdxl-turbo": Publication(repository="stabilityai/sdxl-turbo"),
    "taef1": Publication(repository="madebyollin/taef1", kind="vae_approx"),
}

# The commits that these files were looked at in. Where a mirror does not have them, the newest is taken.
REVISIONS = {
    "Comfy-Org/z_image_turbo": "6fc90a3b1b653e935a0d175e260736de25b84df5",
    "Tongyi-MAI/Z-Image-Turbo": "f332072aa78be7aecdf3ee76d5c247082da564a6",
    "stabilityai/sdxl-turbo": "71153311d3dbb46851df1931d3ca6e939de83304",
    "madebyollin/taef1": "b1b2d00e9e440cfbf3dedb34266864da86016ceb",
}

# (repository, path) -> (algorithm, hexadecimal digest). md5 stands in the authors' manifest; sha256 wins where known.
CHECKSUMS = {
    (TURBO, "split_files/diffusion_models/z_image_turbo_bf16.safetensors"):
        ("sha256", "2407613050b809ffdff18a4ac99af83ea6b95443ecebdf80e064a79c825574a6"),
    (TURBO, "split_files/diffusion_models/z_image_turbo_int8_convrot.safetensors"):
        ("sha256", "be517ebd47c912a5626a588e1aeea43e6be4a43c0cdcd2b48a2a780d9f358635"),
    (TURBO, "split_files/diffusion_models/z_image_turbo_nvfp4.safetensors"):
        ("sha256", "a553c889dbcb910de4c98293237573219a37007c1074a3f04576646a088bd5c8"),
    ("Comfy-Org/z_image", "split_files/diffusion_models/z_image_bf16.safetensors"):
        ("sha256", "996a67d3ff666946b1c25cbc16d1b1918b6cc0ac166309e23fe3b3d830263dee"),
    (TURBO, "split_files/text_encoders/qwen_3_4b_fp8_mixed.safetensors"):
        ("sha256", "72450b19758172c5a7273cf7de729d1c17e7f434a104a00167624cba94f68f15"),
    (TURBO, "split_files/text_encoders/qwen_3_4b_fp4_mixed.safetensors"):
        ("sha256", "7ca32dcf07dfe7692945d80fff86e3a74cb83c6206b9b223ac6836b939bb85d6"),
    (TURBO, "split_files/text_encoders/qwen_3_4b.safetensors"):
        ("sha256", "6c671498573ac2f7a5501502ccce8d2b08ea6ca2f661c458e708f36b36edfc5a"),
    (TURBO, "split_files/vae/ae.safetensors"):
        ("sha256", "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38"),
    ("Tongyi-MAI/Z-Image-Turbo", "tokenizer/tokenizer.json"):
        ("sha256", "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"),
    ("Tongyi-MAI/Z-Image-Turbo", "tokenizer/tokenizer_config.json"): ("md5", "b06e103ac555ec4b51266078b518c0f0"),
}  # fmt: skip
