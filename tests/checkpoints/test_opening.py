"""What `--model` takes besides names and folders: one file, or components one by one; and what it says when not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from candela import Engine, Request
from candela.checkpoints import read_checkpoint
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.errors import CandelaWarning, CheckpointError, MismatchedModel, ModelNotFound
from tests import layouts
from tests.conftest import STAR, pixels

TOKENIZER = DEMO_FOLDER / "tokenizer"


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> str:
    """The demo as ComfyUI's split files."""
    return layouts.export(DEMO_FOLDER, tmp_path_factory.mktemp("split"), "z-image", "bf16")


def place(spec: str, component: str) -> str:
    return dict(pair.split("=") for pair in spec.split(","))[component]


@pytest.mark.parametrize("layout", ["bf16", "all-in-one"])
def test_the_picture_is_the_same_from_every_lossless_layout(layout, tmp_path, star_pixels):
    engine = Engine.load(layouts.export(DEMO_FOLDER, tmp_path, "z-image", layout))
    assert engine.defaults.width == 128, "its own preferences travel in the metadata"
    assert pixels(engine.generate(STAR).images[0]) == star_pixels


def test_parts_of_a_folder_and_files_mix(split, star_pixels):
    spec = f"transformer={place(split, 'transformer')},text_encoder={DEMO_FOLDER},vae={DEMO_FOLDER / 'vae'}"
    checkpoint = read_checkpoint(spec)
    assert checkpoint.parts["tokenizer"].path == TOKENIZER, "a text encoder of a folder brings its tokenizer"
    assert pixels(Engine.load(spec).generate(STAR).images[0]) == star_pixels
    assert pixels(Engine.load("transformer=demo,text_encoder=demo,vae=demo").generate(STAR).images[0]) == star_pixels


def test_a_gguf_text_encoder_brings_its_tokenizer(split, tmp_path, star_pixels):
    tensors = layouts.llama_cpp(layouts.tensors_of(DEMO_FOLDER, "text_encoder"), 0)
    metadata = layouts.configs_of(DEMO_FOLDER, "text_encoder") | layouts.gguf_tokenizer(DEMO_FOLDER)
    path = layouts.write_gguf(tmp_path / "text.gguf", "qwen3", tensors, "BF16", metadata)
    engine = Engine.load(f"transformer={place(split, 'transformer')},text_encoder={path},vae={place(split, 'vae')}")
    prompt = "a large red star on a blue background"
    demo = Engine.load("demo")
    ids = engine.family.tokenize(engine.components, prompt)
    assert torch.equal(ids, demo.family.tokenize(demo.components, prompt))
    assert pixels(engine.generate(STAR).images[0]) == star_pixels


def test_a_sentencepiece_model_inside_the_weights_is_the_tokenizer(tmp_path, tiny_models):
    """As in ComfyUI's gemma_2_2b files."""
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"a red star number {k} on a blue background" for k in range(50)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "m"), vocab_size=300, hard_vocab_limit=False, byte_fallback=True,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, model_type="bpe", minloglevel=2,
        add_dummy_prefix=False, normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    model = (tmp_path / "m.model").read_bytes()
    folder = tiny_models["lumina-image-2"]
    tensors = layouts.hugging_face(layouts.tensors_of(folder, "text_encoder"))
    tensors["spiece_model"] = torch.tensor(list(model), dtype=torch.uint8)
    path = layouts.write_safetensors(
        tmp_path / "gemma.safetensors", tensors, layouts.configs_of(folder, "text_encoder")
    )
    from candela.checkpoints.tokenizers import load_tokenizer

    assert read_checkpoint(f"transformer={folder},text_encoder={path},vae={folder}").parts["tokenizer"].path == path
    tokenizer = load_tokenizer(path)
    ids = tokenizer("a red star").input_ids
    assert ids[0] == 2, "Gemma begins with <bos>"
    assert tokenizer.decode(ids[1:]) == "a red star"
    assert ids[1:] == sentencepiece.SentencePieceProcessor(model_proto=model).encode("a red star")


def test_qwen_s_vocabulary_gets_qwen3_s_template(tmp_path):
    """ComfyUI ships Qwen 2.5's tokenizer, whose own template would put a system message before every prompt."""
    from candela.checkpoints.tokenizers import load_tokenizer

    folder = tmp_path / "qwen25_tokenizer"
    shutil.copytree(TOKENIZER, folder)
    (folder / "chat_template.jinja").write_text("<|im_start|>system\nYou are Qwen.<|im_end|>{{ messages[0].content }}")
    message = [{"role": "user", "content": "a red star"}]
    text = load_tokenizer(folder).apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\na red star<|im_end|>\n<|im_start|>assistant\n"


def test_a_file_that_does_not_say_its_variant_is_taken_for_turbo_with_a_warning(split, tmp_path):
    import re

    from safetensors import safe_open

    file = tmp_path / "mine.safetensors"
    with safe_open(place(split, "transformer"), "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    config = json.loads(layouts.configs_of(DEMO_FOLDER, "transformer")["config"])
    layouts.write_safetensors(file, tensors, {"config": json.dumps({"transformer": config["transformer"]})})
    spec = re.sub("transformer=[^,]*", f"transformer={file}", split)
    with pytest.warns(CandelaWarning, match="does not say whether it is Z-Image Turbo or Base"):
        engine = Engine.load(spec)
    assert (engine.defaults.steps, engine.defaults.guidance) == (8, 0.0)
    file.rename(file.with_name("z_image_mine.safetensors"))
    spec = spec.replace("mine.safetensors", "z_image_mine.safetensors")
    assert Engine.load(spec).defaults.steps == 50


def test_quantised_layers_keep_their_precision_and_requests_work_as_ever(tmp_path):
    engine = Engine.load(layouts.export(DEMO_FOLDER, tmp_path, "z-image", "Q8_0"))
    request = Request("a red star", seed=3, count=2, steps=2)
    first = engine.generate(request)
    assert pixels(first.images[0]) == pixels(engine.generate(request).images[0])
    assert engine.components.transformer.layers[0].attention.to_q.packed.kind == "Q8_0"


BAD = {
    "nonsense=x": (ModelNotFound, "'nonsense' is no component"),
    "transformer=a,transformer=b": (ModelNotFound, "given twice"),
    "transformer=": (ModelNotFound, "as nothing"),
    "missing.gguf": (ModelNotFound, "there is no file missing.gguf"),
    "transformer={transformer}": (MismatchedModel, "text encoder and vae are missing. Add: transformer="),
    "{vae}": (MismatchedModel, "A model needs a transformer; given: vae"),
    "transformer={transformer},text_encoder={vae},vae={vae}": (MismatchedModel, "holds a VAE, not a text encoder"),
    "transformer={transformer},text_encoder={text_encoder},vae={vae}": (MismatchedModel, "brings no tokenizer"),
    "transformer={transformer},text_encoder=demo,vae=nowhere": (ModelNotFound, "nowhere"),
    "transformer={tokenizer},text_encoder=demo,vae=demo": (MismatchedModel, "no transformer folder"),
}


@pytest.mark.parametrize("spec", BAD)
def test_what_cannot_be_is_told(spec, split, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    kind, message = BAD[spec]
    places = dict(pair.split("=") for pair in split.split(","))
    with pytest.raises(kind, match=message):
        read_checkpoint(spec.format(**places))


def test_tensors_that_belong_to_nothing_are_an_error(split, tmp_path):
    from safetensors.torch import load_file

    tensors = layouts.tensors_of(DEMO_FOLDER, "transformer")
    metadata = layouts.configs_of(DEMO_FOLDER, "transformer")
    within = layouts.write_safetensors(tmp_path / "within.safetensors", tensors | {"bonus": torch.ones(2)}, metadata)
    spec = split.replace(place(split, "transformer"), "{}")
    with pytest.raises(MismatchedModel, match=r"1 unexpected \(bonus\)"):
        Engine.load(spec.format(within))
    prefixed = {f"model.diffusion_model.{n}": t for n, t in load_file(place(split, "transformer")).items()}
    beside = layouts.write_safetensors(tmp_path / "beside.safetensors", prefixed | {"bonus": torch.ones(2)}, metadata)
    with pytest.raises(CheckpointError, match=r"1 tensors beside .*\(bonus\)"):
        Engine.load(spec.format(beside))
    tensors.pop("layers.0.attention.to_q.weight")
    lacking = layouts.write_safetensors(tmp_path / "lacking.safetensors", tensors, metadata)
    with pytest.raises(MismatchedModel, match=r"1 missing \(layers.0.attention.to_q.weight\)"):
        Engine.load(spec.format(lacking))
