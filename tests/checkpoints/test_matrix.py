"""Format x family: what is loaded equals the reference, and one denoising step through it gives the same picture.

Lossless formats must be equal exactly; quantised ones within what their own numbers can say. The table is printed at
the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from candela.checkpoints import load_components, read_checkpoint
from candela.checkpoints.filling import build
from candela.checkpoints.opening import parts_at
from candela.checkpoints.packed import QuantizedLinear
from candela.families import FAMILIES, Conditioning
from tests import layouts, tiny

LOSSLESS = ["diffusers names", "authors' names", "prefixed", "all-in-one", "gguf F32", "gguf F16", "gguf BF16"]
EIGHT_BIT = [
    "gguf Q8_0", "gguf prefixed", "gguf pads BF16", "gguf pads Q8_0", "fp8", "fp8 scaled", "fp8 scaled by row",
    "fp8 comfy", "int8 convrot",
]  # fmt: skip
FOUR_BIT = ["gguf Q5_K", "gguf Q5_1", "gguf Q5_0", "gguf Q4_1", "gguf Q4_0", "nvfp4"]
# The least cosine of one step. A float8's three bits of mantissa are off by 2.6 % on average, and unscaled ones lose
# small weights altogether; small random models, which have little to average over, show it.
LEAST = {0.997: ["fp8", "fp8 scaled", "fp8 comfy"], 0.999: LOSSLESS + EIGHT_BIT, 0.98: FOUR_BIT}
FORMATS = LOSSLESS + EIGHT_BIT + FOUR_BIT
NAMES = [family.name for family in FAMILIES if family.name in layouts.TRANSFORMER_NAMES]
TABLE: dict[tuple[str, str], str] = {}


@dataclass
class Reference:
    folder: Path
    components: object
    step: torch.Tensor


@pytest.fixture(scope="session")
def references(tmp_path_factory) -> dict[str, Reference]:
    """A model per family, wide enough for blocks of 256, in bfloat16's values, and what one step gives."""
    result = {}
    for name in NAMES:
        folder = tiny.wide(name, tmp_path_factory.mktemp("wide") / name)
        components = load_components(read_checkpoint(folder), device=torch.device("cpu"), dtype=torch.float32)
        result[name] = Reference(folder, components, one_step(name, components.transformer))
    return result


def one_step(family: str, transformer: torch.nn.Module) -> torch.Tensor:
    """The velocity at t = 700 for a fixed noise and fixed text features."""
    driver = next(f for f in FAMILIES if f.name == family)
    generator = torch.Generator().manual_seed(5)
    width = transformer.config[driver.text_width_key]
    features = torch.randn((7, width), generator=generator)
    latents = torch.randn((1, transformer.config.in_channels, 8, 8), generator=generator)
    from candela.checkpoints import Components

    predict = driver.predictor(
        Components({"transformer": transformer}), Conditioning(("x",), (features,)), 0.0, latents.shape
    )
    with torch.no_grad():
        return predict(latents, torch.tensor(700.0))


def write(form: str, family: str, folder: Path, out: Path) -> Path:
    """The transformer in a format, as one file."""
    own = layouts.tensors_of(folder, "transformer")
    tensors = layouts.TRANSFORMER_NAMES[family](own)
    metadata = layouts.configs_of(folder, "transformer")
    if form == "all-in-one":
        text = layouts.hugging_face(layouts.tensors_of(folder, "text_encoder"))
        tensors = {f"model.diffusion_model.{n}": t for n, t in tensors.items()}
        tensors |= {f"text_encoders.te.transformer.{n}": t for n, t in text.items()}
        tensors |= {f"vae.{n}": t for n, t in layouts.vae(layouts.tensors_of(folder, "vae")).items()}
        every = layouts.configs_of(folder, *layouts.COMPONENTS)
        return layouts.write_safetensors(out / "model.safetensors", tensors, every)
    if form.startswith("gguf"):
        kind = form.split()[-1] if " pads " not in form and form != "gguf prefixed" else "Q8_0"
        pads = form.split()[-1] if " pads " in form else None
        if form == "gguf prefixed":
            tensors = {f"model.diffusion_model.{n}": t for n, t in tensors.items()}
        return layouts.write_gguf(out / "model.gguf", "lumina2", tensors, kind, metadata, pads)
    changed = {
        "diffusers names": lambda: own,
        "authors' names": lambda: tensors,
        "prefixed": lambda: {f"model.diffusion_model.{n}": t for n, t in tensors.items()},
        "fp8": lambda: layouts.plain_fp8(tensors),
        "fp8 scaled": lambda: layouts.scaled_fp8(tensors),
        "fp8 scaled by row": lambda: layouts.scaled_fp8(tensors, per_row=True),
        "fp8 comfy": lambda: layouts.scaled_fp8(tensors, marked=True),
        "int8 convrot": lambda: layouts.int8_convrot(tensors),
        "nvfp4": lambda: layouts.nvfp4(tensors),
    }
    return layouts.write_safetensors(out / "model.safetensors", changed[form](), metadata)


def dense(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every weight by name, quantised ones made dense."""
    result = dict(module.named_parameters())
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLinear):
            result[f"{name}.weight"] = layer.weight
    return result


# The largest error of a value, in units of the largest value in its row (its matrix, where one scale serves all).
ERRORS = {"Q8_0": 0.005, "Q5_K": 0.08, "Q5_1": 0.05, "Q5_0": 0.05, "Q4_1": 0.08, "Q4_0": 0.1, "nvfp4": 0.2, "fp8": 0.07,
          "int8": 0.08}  # fmt: skip


def tolerance(form: str) -> float:
    if form in LOSSLESS:
        return 0.0 if form != "gguf F16" else 1e-3  # bfloat16's small values lie below float16's normal range
    return ERRORS[next((kind for kind in ERRORS if kind in form), "Q8_0")]


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("form", FORMATS)
def test_matrix(form, family, references, tmp_path):
    reference = references[family]
    part = parts_at(str(write(form, family, reference.folder, tmp_path)))["transformer"]
    assert part.found is not None
    loaded = build(part.found, device=torch.device("cpu"), dtype=torch.float32).eval()

    wanted, got = dense(reference.components.transformer), dense(loaded)
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        error = (got[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-12)
        assert error <= tolerance(form), f"{name}: {error:.4f}"
    packed = sum(isinstance(layer, QuantizedLinear) for layer in loaded.modules())
    assert (packed > 10) == (form not in LOSSLESS), "quantised weights stay quantised in memory"

    step = one_step(family, loaded)
    cosine = torch.nn.functional.cosine_similarity(step.flatten(), reference.step.flatten(), dim=0).item()
    TABLE[form, family] = f"{cosine:.5f}"
    if form in LOSSLESS and form != "gguf F16":
        assert torch.equal(step, reference.step)
    assert cosine > next(least for least, forms in LEAST.items() if form in forms)


def test_every_cell_is_green(capsys, request):
    chosen = sum(item.name.startswith("test_matrix[") for item in request.session.items)
    if chosen < len(FORMATS) * len(NAMES):
        pytest.skip(f"{chosen} of {len(FORMATS) * len(NAMES)} cells were chosen to run")
    assert len(TABLE) == len(FORMATS) * len(NAMES), "a cell above has failed, or was not run"
    with capsys.disabled():
        print("\n\none denoising step, cosine with the reference")
        print(f"{'':20}" + "".join(f"{name:>16}" for name in NAMES))
        for form in FORMATS:
            print(f"{form:20}" + "".join(f"{TABLE[form, name]:>16}" for name in NAMES))


# --- text encoders and autoencoders -------------------------------------------------------------

ENCODERS = {"z-image": ("qwen3", 0), "lumina-image-2": ("gemma2", 2), "lumina-next": ("gemma", 1)}


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q5_K", "Q4_0", "safetensors", "fp8 comfy"])
def test_text_encoders(kind, family, references, tmp_path):
    reference = references[family]
    architecture, gemma = ENCODERS[family]
    tensors = layouts.tensors_of(reference.folder, "text_encoder")
    metadata = layouts.configs_of(reference.folder, "text_encoder")
    if kind in ("safetensors", "fp8 comfy"):
        named = layouts.hugging_face(tensors)
        named = layouts.scaled_fp8(named, marked=True) if kind == "fp8 comfy" else named
        path = layouts.write_safetensors(tmp_path / "text.safetensors", named, metadata)
    else:
        named = layouts.llama_cpp(tensors, gemma)
        path = layouts.write_gguf(tmp_path / "text.gguf", architecture, named, kind, metadata)
    part = parts_at(str(path))["text_encoder"]
    loaded = build(part.found, device=torch.device("cpu"), dtype=torch.float32).eval()
    ids = torch.tensor([[3, 44, 17, 120, 99, 6, 77]])
    with torch.no_grad():
        got = loaded(input_ids=ids, output_hidden_states=True).hidden_states[-2]
        wanted = reference.components.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2]
    if kind in ("F32", "BF16", "safetensors"):
        assert torch.allclose(got, wanted, atol=1e-5, rtol=1e-5)  # a norm stored with 1 added loses its last bit
    else:
        # Its embedding is quantised too, and its norms keep that error as large as it is.
        assert torch.nn.functional.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > (
            0.95 if kind in ("Q4_0", "Q5_K") else 0.99
        )
        got_weights = dense(loaded)
        for name, tensor in reference.components.text_encoder.named_parameters():
            error = (got_weights[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1.0 if gemma else 1e-12)
            assert error <= ERRORS[kind.split()[0]], f"{name}: {error:.4f}"
        assert isinstance(loaded.layers[0].mlp.up_proj, QuantizedLinear)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("names", ["authors", "diffusers", "below vae."])
def test_autoencoders(names, family, references, tmp_path):
    reference = references[family]
    tensors = layouts.tensors_of(reference.folder, "vae")
    if names != "diffusers":
        tensors = layouts.vae(tensors)
    if names == "below vae.":
        tensors = {f"vae.{name}": tensor for name, tensor in tensors.items()}
    path = layouts.write_safetensors(tmp_path / "ae.safetensors", tensors, layouts.configs_of(reference.folder, "vae"))
    loaded = build(parts_at(str(path))["vae"].found, device=torch.device("cpu"), dtype=torch.float32)
    wanted = dict(reference.components.vae.named_parameters())
    got = dict(loaded.named_parameters())
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    assert loaded.config.scaling_factor == reference.components.vae.config.scaling_factor


# --- names against diffusers' own conversion, at full size --------------------------------------


@pytest.mark.parametrize("family", ["z-image", "lumina-image-2"])
def test_names_are_those_of_diffusers_own_conversion(family):
    """On tensors without memory, in the published sizes."""
    from accelerate import init_empty_weights
    from diffusers import Lumina2Transformer2DModel, ZImageTransformer2DModel
    from diffusers.loaders import single_file_utils

    from candela.checkpoints.architectures import TRANSFORMERS

    architecture = next(a for a in TRANSFORMERS if a.name == family)
    with init_empty_weights():
        model = ZImageTransformer2DModel() if family == "z-image" else Lumina2Transformer2DModel(cap_feat_dim=2304)
    stored = layouts.TRANSFORMER_NAMES[family]({name: tensor.to("meta") for name, tensor in model.state_dict().items()})
    convert = {
        "z-image": single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
        "lumina-image-2": single_file_utils.convert_lumina2_to_diffusers,
    }[family]
    theirs = convert(dict(stored))
    ours = {
        piece.name for name in stored for piece in architecture.pieces(name) if not architecture.ignores(piece.name)
    }
    assert ours == set(theirs) == set(model.state_dict())
    assert not any(re.search("qkv", name) for name in ours)
