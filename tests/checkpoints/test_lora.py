"""What a LoRA file's header tells, and what is refused from it alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from candela import Engine
from candela.checkpoints import read_checkpoint
from candela.checkpoints.architectures import TRANSFORMERS
from candela.checkpoints.lora import Lora, fit, read_lora
from candela.engine.adapters import check_loras, linear_sizes
from candela.errors import CheckpointError, DamagedFile, MismatchedModel, ModelNotFound
from tests import loras
from tests.loras import FORMATS, Format
from tests.reading import counted

ARCHITECTURES = {architecture.name: architecture for architecture in TRANSFORMERS}


@pytest.fixture(scope="module")
def transformers(tiny_models):
    return {name: Engine.load(path, device="cpu").components.transformer for name, path in tiny_models.items()}


def place(path, transformers, family="z-image"):
    return fit(read_lora(path), ARCHITECTURES[family], linear_sizes(transformers[family]), family)


def save(path, tensors) -> None:
    save_file({name: torch.as_tensor(value).contiguous() for name, value in tensors.items()}, path)


def pair(name: str, out: int, into: int, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(rank, into), f"{name}.lora_B.weight": torch.ones(out, rank)}


@pytest.mark.parametrize("label", FORMATS)
def test_what_the_header_tells(transformers, tmp_path, label):
    fmt, path = FORMATS[label], tmp_path / "lora.safetensors"
    loras.write(path, fmt, transformers["z-image"])
    lora = read_lora(path)
    assert lora.naming == fmt.prefix
    assert lora.kinds == ((fmt.kind.removesuffix("-split"), "dora") if fmt.dora else (fmt.kind.removesuffix("-split"),))
    assert lora.ranks == (() if fmt.kind in ("lokr", "diff") else (loras.RANK,))
    assert len(lora.modules) == (20 if fmt.fused else 28)
    placements = place(path, transformers)
    assert len({target.name for placement in placements for target in placement.targets}) == 28
    fused = [placement for placement in placements if len(placement.targets) == 3]
    assert len(fused) == (4 if fmt.fused else 0)
    for placement in fused:
        assert [(target.first, target.rows) for target in placement.targets] == [(0, 32), (32, 32), (64, 32)]


def test_a_fused_projection_with_shorter_keys(transformers, tmp_path):
    path = tmp_path / "lora.safetensors"
    save(path, pair("diffusion_model.layers.1.attention.qkv", 48, 24))
    (placement,) = place(path, transformers, "lumina-image-2")
    assert [(t.name, t.first, t.rows) for t in placement.targets] == [
        ("layers.1.attn.to_q", 0, 24), ("layers.1.attn.to_k", 24, 12), ("layers.1.attn.to_v", 36, 12),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stored", "own", "out", "into"),
    [
        ("lora_unet_x_embedder", "all_x_embedder.2-1", 32, 64),
        ("lora_unet_all_x_embedder_2-1", "all_x_embedder.2-1", 32, 64),
        ("lora_unet_final_layer_adaLN_modulation_1", "all_final_layer.2-1.adaLN_modulation.1", 32, 32),
        ("lycoris_context_refiner_0_feed_forward_w2", "context_refiner.0.feed_forward.w2", 32, 85),
        ("lora_unet_noise_refiner_0_attention_to_out_0", "noise_refiner.0.attention.to_out.0", 32, 32),
        ("diffusion_model.cap_embedder.1", "cap_embedder.1", 32, 16),
        ("lora_unet_t_embedder_mlp_0", "t_embedder.mlp.0", 1024, 256),
        ("diffusion_model.transformer.layers.0.adaLN_modulation.0", "layers.0.adaLN_modulation.0", 128, 32),
        ("pipe.dit.layers.0.attention.to_q", "layers.0.attention.to_q", 32, 32),
        ("model.layers.0.attention.to_q", "layers.0.attention.to_q", 32, 32),
        ("transformer._orig_mod.layers.0.attention.to_q", "layers.0.attention.to_q", 32, 32),
        ("module.layers.0.attention.to_q", "layers.0.attention.to_q", 32, 32),
        ("transformer_layers_0_attention_to_q", "layers.0.attention.to_q", 32, 32),
        ("diffusion_model.noise.refiner.0.attention.to_q", "noise_refiner.0.attention.to_q", 32, 32),
        ("diffusion_model.noise.refiner.0.attention.out", "noise_refiner.0.attention.to_out.0", 32, 32),
    ],
)  # fmt: skip
def test_modules_beside_the_usual(transformers, tmp_path, stored, own, out, into):
    save(tmp_path / "l.safetensors", pair(stored, out, into))
    (placement,) = place(tmp_path / "l.safetensors", transformers)
    assert [target.name for target in placement.targets] == [own]


FOREIGN = {
    "Flux": ("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072),
    "Flux ": ("lora_unet_double_blocks_0_img_attn_qkv", 9216, 3072),
    "Qwen-Image": ("transformer_blocks.0.img_mlp.net.2", 3072, 12288),
    "Stable Diffusion XL": ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 640, 2048),
    "Stable Diffusion 1.5": ("lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 1280, 768),
    "Stable Diffusion 3": ("diffusion_model.joint_blocks.0.x_block.attn.qkv", 4608, 1536),
    "Wan": ("diffusion_model.blocks.0.cross_attn.k", 5120, 5120),
    "lumina-image-2": ("diffusion_model.layers.0.attention.qkv", 3840, 2304),
    "lumina-image-2 ": ("transformer.layers.0.attn.to_q", 2304, 2304),
    "lumina-next": ("diffusion_model.layers.0.attention.wq", 2304, 2304),
}


@pytest.mark.parametrize("family", FOREIGN)
def test_a_lora_of_another_family_is_refused_in_no_time(tiny_models, tmp_path, family):
    path = tmp_path / "foreign.safetensors"
    save(path, pair(*FOREIGN[family]))
    assert read_lora(path).family == family.strip()
    checkpoint = read_checkpoint(tiny_models["z-image"])
    with counted() as read, pytest.raises(MismatchedModel) as caught:
        check_loras(checkpoint, "z-image", [Lora(path)])
    assert read.bytes < 1e6
    message = str(caught.value)
    assert family.strip() in message and "z-image" in message and str(path) in message
    assert "Choose" in message


def test_z_image_on_the_others(transformers, tmp_path):
    for naming, name in (("a", "diffusion_model.layers.0.attention.qkv"), ("b", "transformer.layers.0.attention.to_q")):
        path = tmp_path / f"{naming}.safetensors"
        save(path, pair(name, 3840 * (3 if naming == "a" else 1), 3840))
        assert read_lora(path).family == "z-image"
        for family in ("lumina-image-2", "lumina-next"):
            with pytest.raises(MismatchedModel, match=rf"for z-image.*model is {family}"):
                place(path, transformers, family)


def test_another_size_of_the_same_family_in_numbers(transformers, tmp_path):
    path = tmp_path / "large.safetensors"
    save(path, pair("diffusion_model.layers.0.attention.qkv", 3 * 3840, 3840))
    with pytest.raises(MismatchedModel, match=r"takes 3840 values and gives 11520; .* takes 32 and gives 96"):
        place(path, transformers)


@pytest.mark.parametrize(
    ("name", "said", "family"),
    [("modelspec.architecture", "Z-Image/lora", "z-image"), ("ss_base_model_version", "zimage", "z-image"),
     ("ss_base_model_version", "lumina2", "lumina-image-2"), ("ss_base_model_version", "unheard of", None)],
)  # fmt: skip
def test_metadata_where_names_say_nothing(tmp_path, name, said, family):
    save_file(pair("diffusion_model.layers.0.feed_forward.w1", 40, 20), tmp_path / "l.safetensors", {name: said})
    assert read_lora(tmp_path / "l.safetensors").family == family


def broken(sound: dict) -> dict[str, tuple[dict, str, type[CheckpointError]]]:
    """-> tensors, words of the message, error. `sound` is a file that is whole."""
    query, first = "transformer.layers.0.attention.to_q", "diffusion_model.layers.0"
    linear = f"{first}.feed_forward.w1"
    without = {name: value for name, value in sound.items() if name != f"{query}.lora_B.weight"}
    conv = {f"{query}.lora_A.weight": torch.ones(2, 32, 1, 1), f"{query}.lora_B.weight": torch.ones(32, 2, 1, 1)}
    text = {"lora_te_x.lora_down.weight": torch.ones(2, 16), "lora_te_x.lora_up.weight": torch.ones(16, 2)}
    extra = [pair(f"transformer.layers.{n}.attention.to_q", 32, 32) for n in range(6, 10)]
    absent, refused, other_half = MismatchedModel, MismatchedModel, DamagedFile

    def beside(role: str, *shape: int, **options) -> dict:
        return sound | {f"{query}.{role}": torch.ones(*shape, **options)}

    return {
        "A without B": (without, f"{query} has down, and its other half is missing", other_half),
        "half a LoKr": ({f"{linear}.lokr_w1": torch.ones(5, 4)}, "has lokr_w1, and its other half", other_half),
        "alpha alone": ({f"{query}.alpha": torch.tensor(1.0)}, "other half is missing", other_half),
        "unknown key": (beside("lora_C.weight", 2), r"1 of its tensors are .*\(.*to_q.lora_C.weight\)", refused),
        "two adapters": (beside("lora_A.other.weight", 2, 32), "no known kind, or there twice", refused),
        "extra module": (sound | extra[0], r"1 of its 29 modules are not .*\(layers.6.attention.to_q\)", absent),
        "four extra": (
            sound | extra[0] | extra[1] | extra[2] | extra[3],
            r"4 of its 32 modules are not .*layers.8.attention.to_q, \.\.\.\)",
            absent,
        ),
        "fused and split": (
            sound | pair("transformer.layers.0.attention.qkv", 96, 32),
            r"both .*layers.0.attention.qkv.* are for layers.0.attention.to_",
            refused,
        ),
        "ranks apart": (beside("lora_B.weight", 32, 5), r"up \[32, 5\] and down \[3, 32\] do not", DamagedFile),
        "convolution": (conv, "convolution or a norm", refused),
        "lora_mid": (beside("lora_mid.weight", 3, 3, 3, 3), r"for a convolution \(lora_mid\)", refused),
        "set_weight": (sound | {f"{first}.attention_norm1.set_weight": torch.ones(32)}, "modules are not in", absent),
        "set_weight of a matrix": ({f"{query}.set_weight": torch.ones(32, 32)}, r"whole weight .*\(set_w", refused),
        "a norm": ({f"{first}.attention_norm1.diff": torch.ones(32)}, "not in this z-image", absent),
        "text encoder too": (sound | text, "changes the text encoder too: 2 of its tensors", refused),
        "text encoder only": (text, "changes the text encoder", refused),
        "text_encoder.": (sound | pair("text_encoder.layers.0.q_proj", 16, 16), "2 of its tensors are for it", refused),
        "text_encoders.": (sound | pair("text_encoders.qwen3_4b.model.x", 16, 16), "2 of its tensors are", refused),
        "no LoRA": ({"layers.0.attention.to_q.weight": torch.ones(2)}, "no LoRA: none of its 1 tensors", refused),
        "nothing": ({}, "holds no LoRA", refused),
        "alpha of two": (beside("alpha", 2), r"alpha is \[2\], where \[\] or \[1\] was expected", DamagedFile),
        "magnitudes": (beside("dora_scale", 7, 1), r"dora_scale is \[7, 1\]", DamagedFile),
        "endless name": (sound | {"transformer." * 100_000 + "alpha": torch.ones(1)}, "1 of its tensors are", refused),
        "integers": (beside("lora_A.weight", 3, 32, dtype=torch.int8), "stored as I8", refused),
        "bias of another length": ({f"{linear}.diff_b": torch.ones(4)}, "bias of another length", refused),
    }


BROKEN = [
    "A without B", "half a LoKr", "alpha alone", "unknown key", "two adapters", "extra module", "four extra",
    "fused and split", "ranks apart", "convolution", "lora_mid", "set_weight", "set_weight of a matrix", "a norm",
    "text encoder too", "text encoder only", "text_encoder.", "text_encoders.", "no LoRA", "nothing", "alpha of two",
    "magnitudes", "endless name", "integers", "bias of another length",
]  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_nothing_is_dropped_or_guessed(transformers, tmp_path, case):
    loras.write(tmp_path / "sound.safetensors", FORMATS["transformer.*.lora_A/B (peft)"], transformers["z-image"])
    tensors, words, error = broken(load_file(tmp_path / "sound.safetensors"))[case]
    path = tmp_path / "broken.safetensors"
    save(path, tensors)
    with pytest.raises(error, match=words) as caught:
        place(path, transformers)
    assert str(path) in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ModelNotFound, match="there is no LoRA file"):
        read_lora(tmp_path / "none.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x02}" * 40)
    with pytest.raises(DamagedFile, match="a Python pickle"):
        read_lora(tmp_path / "pickle.safetensors")
    with pytest.raises(DamagedFile):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"transformer.lora_alpha": "x"}',
        "[1]",
        '{"transformer.alpha_pattern": [1]}',
        '{"transformer.lora_alpha": NaN}',
        '{"transformer.r": 8, "transformer.lora_alpha": 1, "transformer.alpha_pattern": {"(": 1}}',
        '{"transformer.lora_alpha": 8}',
        '{"transformer.r": 0, "transformer.lora_alpha": 8}',
        '{"transformer.r": 8, "transformer.lora_alpha": 8, "transformer.rank_pattern": {"a": -2}}',
        '{"transformer.r": 8}',
    ],
)
def test_settings_that_are_none(tmp_path, text):
    save_file(pair("transformer.a", 2, 2), tmp_path / "l.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(CheckpointError, match="settings, as peft writes them, cannot be used"):
        read_lora(tmp_path / "l.safetensors")


def test_peft_s_settings_beside_the_file(transformers, tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    loras.write(path, Format("base_model.model."), transformers["z-image"])
    save_file(load_file(path), path)  # without the metadata
    with pytest.raises(
        MismatchedModel, match=r'another file, adapter_config.json.*write \{"r": 3, "lora_alpha": ALPHA\}'
    ):
        place(path, transformers)
    (tmp_path / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 12}')  # as the message says
    lora = read_lora(path)
    assert len(place(path, transformers)) == 28
    assert [lora.scale(module, None) for module in lora.modules] == [4.0] * 28
    assert lora.scale(lora.modules[0], 12.0) == 4.0
    with pytest.raises(MismatchedModel, match=r"has the alpha 1.5, and 12 by peft's settings"):
        lora.scale(lora.modules[0], 1.5)
    path.rename(tmp_path / "renamed.safetensors")
    with pytest.raises(MismatchedModel, match=r"adapter_config.json, which is not beside it"):
        place(tmp_path / "renamed.safetensors", transformers)


def test_other_naming_in_the_same_family(transformers, tmp_path):
    """Half of the families' own words mean the same in each."""
    for family in ("lumina-image-2", "lumina-next"):
        for prefix in ("transformer.", "lora_unet_", "base_model.model."):
            path = tmp_path / "l.safetensors"
            delta = loras.write(path, Format(prefix), transformers[family])
            placed = {target.name for each in place(path, transformers, family) for target in each.targets}
            assert placed == set(delta)
