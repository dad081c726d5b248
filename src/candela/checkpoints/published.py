"""Which files a catalogue's model consists of, where they are published, and their checksums.

Sources: the repositories' own pages and the authors' manifest of Z-Image-Turbo, read in 2026-11. Where no checksum
stands here, the hub's own listing has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """One file: its repository and path there; the kind of ComfyUI's model folder that it belongs into; which
    component it is; its length."""

    repository: str
    path: str
    kind: str
    component: str
    bytes: int

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Publication:
    """One model.

    Attributes:
        repository: its authors' own, in diffusers layout; empty for what is not downloaded.
        split: precision -> files as ComfyUI has them, the most precise first; smaller than the authors' where there
            are any, and shared with ComfyUI's own nodes.
        tokenizer: repository of the tokenizer folder that belongs to split files; empty where they contain it.
        kind: of ComfyUI's model folders, for a whole repository.
    """

    repository: str = ""
    split: dict[str, tuple[Published, ...]] = field(default_factory=dict)
    tokenizer: str = ""
    kind: str = "diffusers"


TURBO, OFFICIAL = "Comfy-Org/z_image_turbo", "Tongyi-MAI/Z-Image-Turbo"
LUMINA = "Comfy-Org/Lumina_Image_2.0_Repackaged"
QWEN_FOLDER = "qwen_3_4b_tokenizer"  # beside the text encoder's files: they share the vocabulary
VAE = Published(TURBO, "split_files/vae/ae.safetensors", "vae", "vae", 335_304_388)  # Flux's; all of these share it
QWEN = {"bf16": (TURBO, "qwen_3_4b", 8_044_982_048), "int8": (TURBO, "qwen_3_4b_fp8_mixed", 5_631_994_051),
        "nvfp4": (TURBO, "qwen_3_4b_fp4_mixed", 3_479_416_193)}  # fmt: skip


def _split(transformer: tuple[str, str, int], text_encoder: tuple[str, str, int]) -> tuple[Published, ...]:
    """Each as (repository, file name without its end, bytes)."""

    def file(kind: str, component: str, repository: str, name: str, length: int) -> Published:
        return Published(repository, f"split_files/{kind}/{name}.safetensors", kind, component, length)

    return (
        file("diffusion_models", "transformer", *transformer),
        file("text_encoders", "text_encoder", *text_encoder),
        VAE,
    )


PUBLICATIONS = {
    "demo": Publication(),
    "z-image-turbo": Publication(
        OFFICIAL,
        {
            "bf16": _split((TURBO, "z_image_turbo_bf16", 12_309_866_400), QWEN["bf16"]),
            "int8": _split((TURBO, "z_image_turbo_int8_convrot", 6_201_001_296), QWEN["int8"]),
            "nvfp4": _split((TURBO, "z_image_turbo_nvfp4", 4_509_509_600), QWEN["nvfp4"]),
        },
        tokenizer=OFFICIAL,
    ),
    "z-image": Publication(
        "Tongyi-MAI/Z-Image",
        {
            "bf16": _split(("Comfy-Org/z_image", "z_image_bf16", 12_309_866_400), QWEN["bf16"]),
            "int8": _split(("Comfy-Org/z_image", "z_image_int8_convrot", 6_201_001_296), QWEN["int8"]),
        },
        tokenizer=OFFICIAL,
    ),
    "lumina-image-2": Publication(
        "Alpha-VLLM/Lumina-Image-2.0",
        {"bf16": _split((LUMINA, "lumina_2_model_bf16", 5_219_585_680), (LUMINA, "gemma_2_2b_fp16", 5_232_958_283))},
    ),
    "lumina-next-sft": Publication("Alpha-VLLM/Lumina-Next-SFT-diffusers"),
    "sdxl-turbo": Publication("stabilityai/sdxl-turbo"),
    "taef1": Publication("madebyollin/taef1", kind="vae_approx"),
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
    (VAE.repository, VAE.path):
        ("sha256", "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38"),
    (LUMINA, "split_files/diffusion_models/lumina_2_model_bf16.safetensors"):
        ("sha256", "736e7a524186c943568dfe688d87ce3556cfbd97f7026125065b0aa44c351f6a"),
    (LUMINA, "split_files/text_encoders/gemma_2_2b_fp16.safetensors"):
        ("sha256", "29761442862f8d064d3f854bb6fabf4379dcff511a7f6ba9405a00bd0f7e2dbd"),
    (OFFICIAL, "tokenizer/tokenizer.json"):
        ("sha256", "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"),
    (OFFICIAL, "tokenizer/tokenizer_config.json"): ("md5", "b06e103ac555ec4b51266078b518c0f0"),
    (OFFICIAL, "transformer/diffusion_pytorch_model-00001-of-00003.safetensors"):
        ("sha256", "95facd593e2549e8252acb571c653d57f7ddb7f1060d4e81712f152555a88804"),
    (OFFICIAL, "transformer/diffusion_pytorch_model-00003-of-00003.safetensors"):
        ("sha256", "aba4e37a590e63210878160a718d916d80398f4e1f78ab6c9b2b2a00d92769fa"),
    (OFFICIAL, "text_encoder/model-00003-of-00003.safetensors"):
        ("sha256", "7ca841ee75b9c61267c0c6148fd8d096d3d21b6d3e161256a9b878154f91fc52"),
    (OFFICIAL, "vae/diffusion_pytorch_model.safetensors"):
        ("sha256", "f5b59a26851551b67ae1fe58d32e76486e1e812def4696a4bea97f16604d40a3"),
    (OFFICIAL, "model_index.json"): ("md5", "5e3226ed72a9a4a080f2a4ca78b98ddc"),
    (OFFICIAL, "scheduler/scheduler_config.json"): ("md5", "ca682fcc6c5a94cf726b7187e64b9411"),
    (OFFICIAL, "text_encoder/config.json"): ("md5", "1e97eb35d9d0b6aa60c58a8df8d7d99a"),
    (OFFICIAL, "text_encoder/model-00001-of-00003.safetensors"): ("md5", "30b85686b9a9b002e012494fadc027cb"),
    (OFFICIAL, "text_encoder/model-00002-of-00003.safetensors"): ("md5", "e6a24ea164404a01ad2800dbae4e1a13"),
    (OFFICIAL, "text_encoder/model.safetensors.index.json"): ("md5", "589f5395156900f49d617aee8a8d8708"),
    (OFFICIAL, "transformer/config.json"): ("md5", "baed87136fe5f848e24b072f99856cc3"),
    (OFFICIAL, "transformer/diffusion_pytorch_model-00002-of-00003.safetensors"):
        ("md5", "fe81e804658d345323512c63224b0604"),
    (OFFICIAL, "transformer/diffusion_pytorch_model.safetensors.index.json"):
        ("md5", "76d788eb0d42c59cc8f8ec007db639aa"),
    (OFFICIAL, "vae/config.json"): ("md5", "ba9e2980c8630b4abccc643bc9f4a542"),
}  # fmt: skip
