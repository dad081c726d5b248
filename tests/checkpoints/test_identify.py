"""What files are, from headers alone: real models' shapes at full size, whose data is a hole in the disk."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from candela.checkpoints import read_checkpoint
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.checkpoints.identity import identify
from candela.checkpoints.together import fit
from candela.errors import CheckpointError, MismatchedModel, ModelNotFound
from tests import layouts
from tests.reading import counted

FLUX_VAE = {"latent_channels": 16}


def autoencoder(channels: int, **options) -> layouts.Shapes:
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL

    with init_empty_weights():
        model = AutoencoderKL(
            latent_channels=channels, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, **options,
        )  # fmt: skip
    return layouts.named({n: tuple(t.shape) for n, t in model.state_dict().items()}, layouts.vae)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Files as people have them, by a short name; made when first asked for."""
    root = tmp_path_factory.mktemp("shelf")
    words = {"tokenizer.ggml.tokens": [f"word{k}" for k in range(151936)]}
    words["tokenizer.ggml.merges"] = [f"wo rd{k}" for k in range(151387)]

    def transformer(family: str) -> layouts.Shapes:
        return layouts.named(layouts.published(family)[0], layouts.TRANSFORMER_NAMES[family])

    def llama(kind: str, **changes) -> layouts.Shapes:
        gemma = {"qwen3": 0, "gemma2": 2, "gemma": 1}[kind]
        return layouts.named(layouts.encoder(kind, **changes), lambda tensors: layouts.llama_cpp(tensors, gemma))

    def hf(kind: str, **changes) -> layouts.Shapes:
        return layouts.named(layouts.encoder(kind, **changes), layouts.hugging_face)

    def below(prefix: str, shapes: layouts.Shapes) -> layouts.Shapes:
        return {prefix + name: shape for name, shape in shapes.items()}

    hollow, hollow_gguf = layouts.hollow, layouts.hollow_gguf
    makers = {
        "z_image_turbo_bf16.safetensors": lambda p: hollow(p, transformer("z-image")),
        "z_image_bf16.safetensors": lambda p: hollow(p, transformer("z-image")),
        "model-00001-of-00003.safetensors": lambda p: hollow(
            p, {n: s for n, s in transformer("z-image").items() if "layers" in n or "refiner" in n or "cap" in n}
        ),
        "z-image-turbo-Q4_K.gguf": lambda p: hollow_gguf(p, "lumina2", transformer("z-image"), "Q4_K"),
        "Qwen3-4B-Q8_0.gguf": lambda p: hollow_gguf(p, "qwen3", llama("qwen3"), "Q8_0", words),
        "gemma-2-2b-Q6_K.gguf": lambda p: hollow_gguf(p, "gemma2", llama("gemma2"), "Q6_K"),
        "qwen_3_4b.safetensors": lambda p: hollow(p, hf("qwen3")),
        "qwen_3_8b.safetensors": lambda p: hollow(p, hf("qwen3", hidden_size=4096, intermediate_size=12288)),
        "qwen_3_06b.safetensors": lambda p: hollow(p, hf("qwen3", hidden_size=1024, num_hidden_layers=28)),
        "gemma_2_2b.safetensors": lambda p: hollow(p, hf("gemma2")),
        "gemma_2b.safetensors": lambda p: hollow(p, hf("gemma")),
        "ae.safetensors": lambda p: hollow(p, autoencoder(16, use_quant_conv=False, use_post_quant_conv=False), "F32"),
        "sdxl_vae.safetensors": lambda p: hollow(p, autoencoder(4), "F16"),
        "lumina_2.safetensors": lambda p: hollow(
            p,
            below("model.diffusion_model.", transformer("lumina-image-2"))
            | below("text_encoders.gemma2_2b.transformer.", hf("gemma2"))
            | below("vae.", autoencoder(16, use_quant_conv=False, use_post_quant_conv=False)),
        ),
        "lumina_next.safetensors": lambda p: hollow(p, transformer("lumina-next")),
        "t5xxl.safetensors": lambda p: hollow(
            p, {"shared.weight": (32128, 4096), "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}
        ),
        "sdxl_unet.safetensors": lambda p: hollow(
            p, {"label_emb.0.0.weight": (1280, 2816), "input_blocks.4.1.transformer_blocks.1.norm1.weight": (640,)}
        ),
        "gemma_3_4b.safetensors": lambda p: hollow(
            p, hf("gemma2", hidden_size=2560, num_hidden_layers=34) | {"model.layers.0.self_attn.q_norm.weight": (256,)}
        ),
        "controlnet.safetensors": lambda p: hollow(
            p, {"control_layers.0.adaLN_modulation.0.weight": (15360, 256),
                "control_layers.0.attention_norm1.weight": (3840,)},
        ),
        "svdq-int4_r32-z-image-turbo.safetensors": lambda p: hollow(
            p, transformer("z-image") | {"layers.0.attention.to_qkv.wscales": (60, 11520)}
        ),
        "some_lora.safetensors": lambda p: hollow(
            p, {"diffusion_model.layers.0.attention.qkv.lora_A.weight": (16, 3840),
                "diffusion_model.layers.0.attention.qkv.lora_B.weight": (11520, 16)},
        ),
    }  # fmt: skip

    def get(name: str):
        path = root / name
        if not path.exists():
            makers[name](path)
        return path

    return get


def test_a_12_gigabyte_file_takes_a_moment_and_little_memory(shelf):
    path = shelf("z_image_turbo_bf16.safetensors")
    assert path.stat().st_size > 12.3e9
    with counted() as read:
        identity = identify(path)
    assert read.bytes < 1e6
    (component,) = identity.components
    assert (component.family, component.variant, component.precision) == ("z-image", "turbo", "BF16")
    assert component.text_width == 2560 and component.latent_channels == 16 and component.layers == 30
    assert component.parameters == pytest.approx(6.15e9, rel=0.01)
    script = (
        "import sys\nfrom candela.checkpoints.identity import identify\nidentify(sys.argv[1])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < 150e6


def test_a_tokenizer_of_150_000_words_is_passed_over_quickly(shelf):
    path = shelf("Qwen3-4B-Q8_0.gguf")
    with counted() as read:
        (component,) = identify(path).components
    assert read.bytes < 10e6
    assert (component.family, component.known_as, component.text_width) == ("qwen3", "Qwen3-4B", 2560)
    assert component.names == "llama.cpp's" and component.precision.startswith("Q8_0")


def test_variants_are_told_by_names_and_the_evidence_is_given(shelf, tmp_path):
    assert identify(shelf("z_image_bf16.safetensors")).components[0].variant == "base"
    evidence = identify(shelf("z-image-turbo-Q4_K.gguf")).components[0].evidence
    assert evidence == "the file's name: z-image-turbo-Q4_K.gguf"
    shapes = layouts.named(layouts.published("z-image")[0], layouts.z_image)
    told = layouts.hollow_gguf(tmp_path / "model.gguf", "lumina2", shapes, "Q8_0", {"general.name": "Z Image Turbo"})
    assert identify(told).components[0].evidence == "general.name: Z Image Turbo"
    silent = layouts.hollow(tmp_path / "model.safetensors", shapes)
    assert identify(silent).components[0].variant == ""


def test_all_in_one(shelf):
    identity = identify(shelf("lumina_2.safetensors"))
    assert {c.component: (c.family, c.names) for c in identity.components} == {
        "transformer": ("lumina-image-2", "the authors', below model.diffusion_model."),
        "text_encoder": ("gemma2", "transformers', below text_encoders.gemma2_2b.transformer.model."),
        "vae": ("autoencoder", "the authors', below vae."),
    }
    assert identity.rest == ()
    assert fit(shelf("lumina_2.safetensors")).missing == ("tokenizer",)


def test_folders_and_their_components():
    model = identify(DEMO_FOLDER)
    assert model.pipeline == "ZImagePipeline" and [c.component for c in model.components] == [
        "transformer", "text_encoder", "vae",
    ]  # fmt: skip
    (component,) = identify(DEMO_FOLDER / "transformer").components
    assert component.class_name == "ZImageTransformer2DModel" and component.text_width == 128


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("t5xxl.safetensors", "T5"), ("sdxl_unet.safetensors", "Stable Diffusion XL"),
    ],
)  # fmt: skip
def test_an_unknown_file_is_told_by_what_it_resembles(name, near, shelf):
    identity = identify(shelf(name))
    assert identity.kind == "unknown" and identity.resembles
    assert near in identity.resembles.name and identity.resembles.keys


def test_a_lora(shelf):
    identity = identify(shelf("some_lora.safetensors"))
    assert identity.kind == "lora" and identity.lora
    assert (identity.lora.kinds, identity.lora.ranks, identity.lora.modules) == (("lora",), (16,), 1)
    assert (identity.lora.family, identity.lora.naming) == ("z-image", "diffusion_model.")


def test_nothing_there(tmp_path):
    with pytest.raises(ModelNotFound, match="nothing at"):
        identify(tmp_path / "none.safetensors")


WHOLE = [
    ("z-image-turbo-Q4_K.gguf", "Qwen3-4B-Q8_0.gguf", "ae.safetensors"),
    ("z_image_turbo_bf16.safetensors", "qwen_3_4b.safetensors", "ae.safetensors"),
    ("lumina_next.safetensors", "gemma_2b.safetensors", "sdxl_vae.safetensors"),
]


@pytest.mark.parametrize("names", WHOLE, ids=lambda names: names[0])
def test_files_that_form_a_model(names, shelf):
    fitting = fit([shelf(name) for name in names])
    assert not fitting.problem
    brings_words = names[1].endswith(".gguf")
    assert fitting.missing == (() if brings_words else ("tokenizer",)) and fitting.complete == brings_words
    assert fit([shelf(name) for name in names[:2]]).missing[:1] == ("vae",)


def test_a_lora_among_the_files(shelf):
    model = [shelf(name) for name in WHOLE[0]]
    assert fit([*model, shelf("some_lora.safetensors")]).complete
    lumina = fit([shelf("lumina_next.safetensors"), shelf("some_lora.safetensors")])
    assert "is a LoRA for z-image; the model is lumina-next" in lumina.problem


# transformer, text encoder, VAE, and what the message must say: the file, what was found and expected, what to do.
WRONG = {
    "the famous mistake": (
        "z-image-turbo-Q4_K.gguf", "gemma-2-2b-Q6_K.gguf", "ae.safetensors",
        ["gemma-2-2b-Q6_K.gguf gives 2304 (Gemma-2-2B)", "width 2560 (Qwen3-4B)", "Use Qwen3-4B"],
    ),
    "a larger Qwen": (
        "z_image_turbo_bf16.safetensors", "qwen_3_8b.safetensors", "ae.safetensors",
        ["gives 4096 (Qwen3-8B)", "2560 (Qwen3-4B)"],
    ),
    "a smaller Qwen": (
        "z_image_turbo_bf16.safetensors", "qwen_3_06b.safetensors", "ae.safetensors",
        ["gives 1024 (Qwen3-0.6B)", "2560 (Qwen3-4B)"],
    ),
    "the other family's encoder": (
        "lumina_2.safetensors", "Qwen3-4B-Q8_0.gguf", "ae.safetensors",
        ["gives 2560 (Qwen3-4B)", "width 2304 (Gemma-2-2B)", "Use Gemma-2-2B"],
    ),
    "the newer Gemma": (
        "lumina_next.safetensors", "gemma_2_2b.safetensors", "sdxl_vae.safetensors",
        ["gives 2304 (Gemma-2-2B)", "width 2048 (Gemma-2B)"],
    ),
    "the older Gemma": (
        "lumina_2.safetensors", "gemma_2b.safetensors", "ae.safetensors", ["gives 2048 (Gemma-2B)", "width 2304"],
    ),
    "another model of the right width": (
        "z_image_turbo_bf16.safetensors", "gemma_3_4b.safetensors", "ae.safetensors", ["gemma_3_4b.safetensors"],
    ),
    "SDXL's VAE": (
        "z-image-turbo-Q4_K.gguf", "Qwen3-4B-Q8_0.gguf", "sdxl_vae.safetensors",
        ["16 latent channels", "sdxl_vae.safetensors has 4", "Flux"],
    ),
    "Flux's VAE": (
        "lumina_next.safetensors", "gemma_2b.safetensors", "ae.safetensors",
        ["4 latent channels", "ae.safetensors has 16", "SDXL"],
    ),
    "T5 as text encoder": (
        "z-image-turbo-Q4_K.gguf", "t5xxl.safetensors", "ae.safetensors", ["t5xxl", "T5", "not a text encoder"],
    ),
    "a UNet as transformer": (
        "sdxl_unet.safetensors", "qwen_3_4b.safetensors", "ae.safetensors", ["Diffusion XL", "not a transformer"],
    ),
    "a LoRA as transformer": (
        "some_lora.safetensors", "qwen_3_4b.safetensors", "ae.safetensors", ["a LoRA", "not a transformer"],
    ),
    "a ControlNet as transformer": (
        "controlnet.safetensors", "qwen_3_4b.safetensors", "ae.safetensors", ["controlnet", "not a transformer"],
    ),
    "text encoder and VAE exchanged": (
        "z-image-turbo-Q4_K.gguf", "ae.safetensors", "qwen_3_4b.safetensors", ["a VAE, not a text encoder"],
    ),
    "one part of three": (
        "model-00001-of-00003.safetensors", "qwen_3_4b.safetensors", "ae.safetensors", ["one of 3 parts", "folder"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_combinations_are_refused_from_headers(case, shelf):
    transformer, encoder, vae, words = WRONG[case]
    spec = f"transformer={shelf(transformer)},text_encoder={shelf(encoder)},vae={shelf(vae)}"
    spec += f",tokenizer={DEMO_FOLDER / 'tokenizer'}"
    from candela.families import family_of

    with counted() as read, pytest.raises(CheckpointError) as caught:
        family_of(read_checkpoint(spec))
    assert read.bytes < 10e6
    message = str(caught.value)
    for word in words:
        assert word in message, message


def test_a_quantisation_that_cannot_be_read_is_named(shelf):
    from candela.checkpoints.filling import build
    from candela.checkpoints.opening import parts_at

    path = shelf("svdq-int4_r32-z-image-turbo.safetensors")
    assert "SVDQuant" in identify(path).components[0].problem
    with pytest.raises(MismatchedModel, match="SVDQuant"):
        build(parts_at(str(path))["transformer"].found, device=torch.device("cpu"), dtype=torch.float32)


def test_two_files_of_one_kind(shelf):
    fitting = fit([shelf("ae.safetensors"), shelf("sdxl_vae.safetensors")])
    assert "two files hold a vae" in fitting.problem and "Choose one" in fitting.problem


def test_the_shell(shelf, tmp_path, capsys):
    from typer.testing import CliRunner

    from candela.cli.main import app

    files = [str(shelf("z-image-turbo-Q4_K.gguf")), str(shelf("gemma-2-2b-Q6_K.gguf"))]
    run = CliRunner().invoke(app, ["identify", *files])
    assert run.exit_code == 2
    assert "do not fit: the transformer" in run.output and "2304 (Gemma-2-2B)" in run.output
    run = CliRunner().invoke(app, ["identify", "--json", *files])
    report = json.loads(run.stdout)
    assert report["fit"]["family"] == "z-image" and not report["fit"]["complete"]
    assert report["files"][0]["components"][0]["text_width"] == 2560
    run = CliRunner().invoke(app, ["identify", str(shelf("ae.safetensors"))])
    assert run.exit_code == 0 and "16 latent channels" in run.output
    run = CliRunner().invoke(app, ["identify", str(tmp_path / "none.gguf")])
    assert run.exit_code == 2
