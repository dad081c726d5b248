"""Components that are read again from their files, in every layout that files have: the picture is always the same."""

from __future__ import annotations

import gc
import re
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from candela import Engine, MismatchedModel, Request
from candela.checkpoints.packed import QuantizedLinear, Scaled
from tests import layouts, tiny

REQUEST = Request("a red star", width=64, height=64, steps=2)
LAYOUTS = ["int8", "int8 unturned", "scaled-fp8", "comfy-fp8", "fp8", "nvfp4", "Q8_0", "Q4_0", "all-in-one"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Of widths that blocks of 256 fit into."""
    return tiny.wide("z-image", tmp_path_factory.mktemp("wide") / "model")


def picture(model: str | Path, placement: str, **options) -> bytes:
    engine = Engine.load(model, device="cpu", placement=placement, **options)
    assert engine.residency.rung.placement.value == placement
    return engine.generate(REQUEST).images[0].tobytes()


@pytest.mark.parametrize(
    "options", [{}, {"placement": "released"}, {"placement": "streamed"}, {"fast": "int8"}], ids=str
)
def test_an_engine_that_is_gone_leaves_no_weights_until_python_looks_for_circles(options):
    # Frames of a library's first import refer to what they saw.
    Engine.load("demo", device="cpu").generate(REQUEST)
    gc.collect()
    gc.disable()
    try:
        engine = Engine.load("demo", device="cpu", **options)
        engine.generate(REQUEST)
        parts = engine.components.modules.items()
        alive = {f"{name}.{path}": weakref.ref(part) for name, whole in parts for path, part in whole.named_modules()}
        del engine, parts
        assert [path for path, part in alive.items() if part() is not None] == []
    finally:
        gc.enable()


def int8_unturned(folder: Path, out: Path) -> str:
    """As the int8 file of `layouts`, of matrices whose columns were left as they are."""
    model = layouts.export(folder, out, "z-image", "bf16")
    found = re.search(r"transformer=([^,]*)", model)
    assert found
    tensors = load_file(found[1])
    for name in [name for name, tensor in tensors.items() if layouts.quantizable(name, tensor)]:
        base, matrix = name.removesuffix("weight"), tensors[name].float()
        scale = matrix.abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (matrix / scale).round().to(torch.int8)
        tensors[f"{base}weight_scale"] = scale
        tensors[f"{base}comfy_quant"] = layouts.json_tensor({"format": "int8_tensorwise"})
    layouts.write_safetensors(Path(found[1]), tensors, layouts.configs_of(folder, "transformer"))
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_placement_gives_the_same_picture_from_every_layout(wide, tmp_path, layout):
    unturned = layout == "int8 unturned"
    model = int8_unturned(wide, tmp_path) if unturned else layouts.export(wide, tmp_path, "z-image", layout)
    resident = picture(model, "resident")
    assert picture(model, "released") == resident
    assert picture(model, "streamed") == resident


@pytest.mark.parametrize(("layout", "rotation"), [("int8", 16), ("int8 unturned", 0)])
def test_how_far_columns_were_turned_is_read_from_the_file(wide, tmp_path, layout, rotation):
    model = int8_unturned(wide, tmp_path) if rotation == 0 else layouts.export(wide, tmp_path, "z-image", layout)
    transformer = Engine.load(model, device="cpu", placement="streamed").components.transformer
    packed = [layer.packed for layer in transformer.modules() if isinstance(layer, QuantizedLinear)]
    assert packed and all(isinstance(one, Scaled) and one.rotation == rotation for one in packed)


def changed(folder: Path, change: str) -> None:
    """Takes one weight of the transformer away, cuts it, or puts another beside it."""
    (file,) = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    name = "layers.0.feed_forward.w1.weight"
    if change == "missing":
        del tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name][:-4].clone()
    else:
        tensors["another.weight"] = torch.zeros(3)
    save_file(tensors, file)


@pytest.mark.parametrize("change", ["missing", "shape", "unexpected"])
def test_a_folder_that_does_not_fit_is_refused_in_every_placement_alike(tiny_models, tmp_path, change):
    folder = Path(shutil.copytree(tiny_models["z-image"], tmp_path / "model"))
    changed(folder, change)
    told = set()
    for placement in ("resident", "released", "streamed"):
        with pytest.raises(MismatchedModel, match=r"w1\.weight|another\.weight") as caught:
            Engine.load(folder, device="cpu", placement=placement)
        told.add(str(caught.value))
    assert len(told) == 1, told


@pytest.mark.parametrize("change", ["missing", "shape", "unexpected"])
def test_a_file_that_does_not_fit_is_refused_in_every_placement_alike(tiny_models, tmp_path, change):
    model = layouts.export(tiny_models["z-image"], tmp_path, "z-image", "bf16")
    file = tmp_path / "z_image_turbo_bf16.safetensors"
    tensors = load_file(file)
    name = "layers.0.feed_forward.w1.weight"
    if change == "shape":
        tensors[name] = tensors[name][:-4].clone()
    elif change == "missing":
        del tensors[name]
    else:
        tensors["layers.0.another.weight"] = torch.zeros(3)
    layouts.write_safetensors(file, tensors, layouts.configs_of(tiny_models["z-image"], "transformer"))
    told = set()
    for placement in ("resident", "released", "streamed"):
        with pytest.raises(MismatchedModel, match=r"w1\.weight|another\.weight") as caught:
            Engine.load(model, device="cpu", placement=placement)
        told.add(str(caught.value))
    assert len(told) == 1, told


def test_files_of_half_precision_are_read_again_where_they_were_loaded(tiny_models, tmp_path):
    """The variant for float16, of other numbers here, is what a model in float16 consists of."""
    folder = Path(shutil.copytree(tiny_models["z-image"], tmp_path / "model"))
    (file,) = (folder / "transformer").glob("*.safetensors")
    halves = {name: (tensor * 0.5).half() for name, tensor in load_file(file).items()}
    save_file(halves, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    resident = picture(folder, "resident", dtype="float16")
    assert picture(folder, "streamed", dtype="float16") == resident
    plain = picture(tiny_models["z-image"], "resident", dtype="float16")
    assert plain != resident


def test_what_only_the_library_can_load_is_loaded_by_it(tiny_models, tmp_path):
    """A second configuration beside a text encoder's weights comes with rules of its own."""
    folder = Path(shutil.copytree(tiny_models["z-image"], tmp_path / "model"))
    (folder / "text_encoder" / "generation_config.json").write_text("{}")
    assert picture(folder, "streamed") == picture(tiny_models["z-image"], "resident")


@pytest.mark.parametrize("placement", ["released", "streamed"])
def test_pictures_are_made_within_inference_mode(tiny_models, placement):
    engine = Engine.load(tiny_models["z-image"], device="cpu", placement=placement, dtype="bfloat16")
    with torch.inference_mode():
        within = engine.generate(REQUEST).images[0].tobytes()
        again = engine.generate(Request("a blue circle", width=64, height=64, steps=2)).images[0].tobytes()
    assert engine.generate(REQUEST).images[0].tobytes() == within != again
