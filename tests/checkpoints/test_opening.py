"""What `--model` takes besides names and folders: one file, or components one by one; and what it says when not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from candela import Engine, Request
from candela.checkpoints import read_checkpoint
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.errors import CandelaWarning, CheckpointError, DamagedFile, MismatchedModel, ModelNotFound
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
    engine = Engine.load(layouts.export(DEMO_FOLDER, tmp_path, "z-image", layout), device="cpu")
    assert engine.defaults.width == 128, "its own preferences travel in the metadata"
    assert pixels(engine.generate(STAR).images[0]) == star_pixels


def test_parts_of_a_folder_and_files_mix(split, star_pixels):
    spec = f"transformer={place(split, 'transformer')},text_encoder={DEMO_FOLDER},vae={DEMO_FOLDER / 'vae'}"
    checkpoint = read_checkpoint(spec)
    assert checkpoint.parts["tokenizer"].path == TOKENIZER, "a text encoder of a folder brings its tokenizer"
    assert pixels(Engine.load(spec, device="cpu").generate(STAR).images[0]) == star_pixels
    assert (
        pixels(Engine.load("transformer=demo,text_encoder=demo,vae=demo", device="cpu").generate(STAR).images[0])
        == star_pixels
    )


def test_a_model_with_another_part(split, tmp_path, star_pixels):
    spec = f"demo,vae={place(split, 'vae')}"
    engine = Engine.load(spec, device="cpu")
    assert engine.components.vae.config.scaling_factor and pixels(engine.generate(STAR).images[0]) == star_pixels
    whole = layouts.export(DEMO_FOLDER, tmp_path / "all=in,one", "z-image", "all-in-one")
    file = whole.split(",text_encoder=")[0].removeprefix("transformer=")
    engine = Engine.load(f"{file},tokenizer={TOKENIZER}", device="cpu")
    assert pixels(engine.generate(STAR).images[0]) == star_pixels


def test_a_model_is_named_so_that_it_is_found_from_any_folder(split, monkeypatch):
    from pathlib import Path

    folder = Path(place(split, "transformer")).parent
    monkeypatch.chdir(folder)
    checkpoint = read_checkpoint("transformer=z_image_turbo_bf16.safetensors,text_encoder=demo,vae=demo")
    assert checkpoint.name == f"transformer={folder / 'z_image_turbo_bf16.safetensors'},text_encoder=demo,vae=demo"


def test_a_gguf_text_encoder_brings_its_tokenizer(split, tmp_path, star_pixels):
    tensors = layouts.llama_cpp(layouts.tensors_of(DEMO_FOLDER, "text_encoder"), 0)
    metadata = layouts.configs_of(DEMO_FOLDER, "text_encoder") | layouts.gguf_tokenizer(DEMO_FOLDER)
    path = layouts.write_gguf(tmp_path / "text.gguf", "qwen3", tensors, "BF16", metadata)
    engine = Engine.load(
        f"transformer={place(split, 'transformer')},text_encoder={path},vae={place(split, 'vae')}", device="cpu"
    )
    prompt = "a large red star on a blue background"
    demo = Engine.load("demo", device="cpu")
    ids = engine.family.tokenize(engine.components, prompt)
    assert torch.equal(ids, demo.family.tokenize(demo.components, prompt))
    assert pixels(engine.generate(STAR).images[0]) == star_pixels


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory) -> bytes:
    """A small vocabulary with Gemma's options."""
    import sentencepiece

    tmp_path = tmp_path_factory.mktemp("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"a red star number {k} on a blue background" for k in range(50)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "m"), vocab_size=300, hard_vocab_limit=False, byte_fallback=True,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, model_type="bpe", minloglevel=2,
        add_dummy_prefix=False, normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    return (tmp_path / "m.model").read_bytes()


@pytest.mark.parametrize("architecture", ["gemma", "gemma2"])
def test_a_gemma_gguf_has_the_tokenizer_of_its_sentencepiece_model(architecture, sentencepiece_model, tmp_path):
    import sentencepiece

    from candela.checkpoints.tokenizers import load_tokenizer

    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    pieces = range(model.get_piece_size())
    kinds = [3 if model.is_control(k) else 2 if model.is_unknown(k) else 6 if model.is_byte(k) else 1 for k in pieces]
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [model.id_to_piece(k) for k in pieces],
        "tokenizer.ggml.scores": [float(model.get_score(k)) for k in pieces], "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip
    path = layouts.write_gguf(tmp_path / "gemma.gguf", architecture, {"a": torch.zeros(4)}, "F32", metadata)
    ids = load_tokenizer(path)("a red star on blue").input_ids
    assert ids == [2, *model.encode("a red star on blue")]


def test_a_sentencepiece_model_inside_the_weights_is_the_tokenizer(sentencepiece_model, tmp_path, tiny_models):
    """As in ComfyUI's gemma_2_2b files."""
    import sentencepiece

    model = sentencepiece_model
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
        engine = Engine.load(spec, device="cpu")
    assert (engine.defaults.steps, engine.defaults.guidance) == (8, 0.0)
    file.rename(file.with_name("z_image_mine.safetensors"))
    spec = spec.replace("mine.safetensors", "z_image_mine.safetensors")
    assert Engine.load(spec, device="cpu").defaults.steps == 50


def test_quantised_layers_keep_their_precision_and_requests_work_as_ever(tmp_path):
    engine = Engine.load(layouts.export(DEMO_FOLDER, tmp_path, "z-image", "Q8_0"), device="cpu")
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
        Engine.load(spec.format(within), device="cpu")
    prefixed = {f"model.diffusion_model.{n}": t for n, t in load_file(place(split, "transformer")).items()}
    beside = layouts.write_safetensors(tmp_path / "beside.safetensors", prefixed | {"bonus": torch.ones(2)}, metadata)
    with pytest.raises(CheckpointError, match=r"1 tensors beside .*\(bonus\)"):
        Engine.load(spec.format(beside), device="cpu")
    tensors.pop("layers.0.attention.to_q.weight")
    lacking = layouts.write_safetensors(tmp_path / "lacking.safetensors", tensors, metadata)
    with pytest.raises(MismatchedModel, match=r"1 missing \(layers.0.attention.to_q.weight\)"):
        Engine.load(spec.format(lacking), device="cpu")


# --- what would load, and be wrong --------------------------------------------------------------


def build(path, component="transformer"):
    from candela.checkpoints.filling import build
    from candela.checkpoints.opening import parts_at

    return build(parts_at(str(path))[component].found, device=torch.device("cpu"), dtype=torch.float32)


def test_the_first_shard_of_a_model_is_not_a_shorter_model(tmp_path):
    """diffusers writes the layers last, so the first shard has everything but the last layers."""
    tensors = layouts.tensors_of(DEMO_FOLDER, "transformer")
    kept = {n: t for n, t in tensors.items() if not n.startswith(("layers.3", "layers.4"))}
    shard = layouts.write_safetensors(tmp_path / "diffusion_pytorch_model-00001-of-00003.safetensors", kept)
    with pytest.raises(MismatchedModel, match="one of 3 parts"):
        build(shard)
    shapes = layouts.named(layouts.published("z-image")[0], layouts.z_image)
    first = {n: s for n, s in shapes.items() if not n.startswith("layers.29.")}
    with pytest.raises(MismatchedModel, match=r"29 layers .* which has 30"):
        read_checkpoint(f"transformer={layouts.hollow(tmp_path / 'renamed.safetensors', first)}")


def test_what_a_file_says_of_itself_must_be_what_is_there(tmp_path):
    tensors = layouts.tensors_of(DEMO_FOLDER, "transformer")
    config = json.loads(layouts.configs_of(DEMO_FOLDER, "transformer")["config"])["transformer"]
    for key, value in (("n_layers", 4), ("n_layers", "x"), ("cap_feat_dim", [1])):
        metadata = {"config": json.dumps({"transformer": config | {key: value}})}
        path = layouts.write_safetensors(tmp_path / "lying.safetensors", tensors, metadata)
        with pytest.raises(MismatchedModel, match=f"its configuration says {key} = "):
            build(path)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_rotated_weights_described_in_the_metadata(prefix, tmp_path):
    """ComfyUI describes the layers of prefixed tensors with and without the prefix."""
    tensors = layouts.z_image(layouts.tensors_of(DEMO_FOLDER, "transformer"))
    marked = layouts.int8_convrot(tensors, 16)
    layers = {n.removesuffix(".comfy_quant"): json.loads(bytes(t.numpy())) for n, t in marked.items() if "comfy_" in n}
    stored = {prefix + n: t for n, t in marked.items() if "comfy_" not in n}
    config = layouts.configs_of(DEMO_FOLDER, "transformer")
    for named in ("", prefix):
        metadata = config | {
            "_quantization_metadata": json.dumps({"layers": {named + n: v for n, v in layers.items()}})
        }
        module = build(layouts.write_safetensors(tmp_path / "int8.safetensors", stored, metadata))
        wanted = layouts.tensors_of(DEMO_FOLDER, "transformer")["layers.0.attention.to_q.weight"].float()
        assert (module.layers[0].attention.to_q.weight - wanted).abs().max() < 0.02 * wanted.abs().max()
    unknown = {
        n: layouts.json_tensor({"format": "some_future_int8"}) if "comfy_" in n else t for n, t in marked.items()
    }
    with pytest.raises(MismatchedModel, match="some_future_int8"):
        build(layouts.write_safetensors(tmp_path / "future.safetensors", unknown, config))


def test_only_llama_cpp_adds_one_to_gemma_s_norms(tmp_path, tiny_models):
    folder = tiny_models["lumina-image-2"]
    tensors = layouts.tensors_of(folder, "text_encoder")
    path = layouts.write_gguf(
        tmp_path / "hf.gguf", "gemma2", tensors, "F32", layouts.configs_of(folder, "text_encoder")
    )
    norms = {n: t for n, t in build(path, "text_encoder").named_parameters() if n.endswith("norm.weight")}
    assert norms and all(torch.equal(t, tensors[n].float()) for n, t in norms.items())


def test_a_gguf_text_encoder_s_own_constants(tmp_path):
    from candela.checkpoints.opening import parts_at

    shapes = layouts.named(layouts.encoder("qwen3"), lambda tensors: layouts.llama_cpp(tensors, 0))

    def written(name, architecture="qwen3", **metadata):
        return layouts.hollow_gguf(tmp_path / f"{name}.gguf", architecture, shapes, "Q8_0", metadata)

    assert parts_at(str(written("plain")))["text_encoder"].config["rope_parameters"]["rope_theta"] == 1e6
    longer = written("longer", **{"qwen3.rope.freq_base": 5e6})
    assert parts_at(str(longer))["text_encoder"].config["rope_parameters"]["rope_theta"] == 5e6
    scaled = written("scaled", **{"qwen3.rope.scaling.type": "yarn"})
    with pytest.raises(MismatchedModel, match="positions are scaled"):
        parts_at(str(scaled))
    assert "text_encoder" not in parts_at(str(written("vision", architecture="qwen3vl")))


def test_an_autoencoder_with_what_training_left_over(tmp_path):
    own = layouts.tensors_of(DEMO_FOLDER, "vae")
    left = {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.zeros((), dtype=torch.int32)}
    metadata = layouts.configs_of(DEMO_FOLDER, "vae")
    path = layouts.write_safetensors(tmp_path / "vae.safetensors", layouts.vae(own) | left, metadata)
    loaded = dict(build(path, "vae").named_parameters())
    assert loaded.keys() == own.keys()
    assert all(torch.equal(tensor, own[name].float()) for name, tensor in loaded.items())


NAMES = {
    "z_image_turbo_bf16.safetensors": ({"modelspec.architecture": "z-image"}, "turbo"),
    "model-Q8_0.gguf": ({"general.basename": "Z-Image", "general.finetune": "Turbo"}, "turbo"),
    "z_image_de_turbo_v1.safetensors": ({}, "base"),
    "z_image_bf16.safetensors": ({}, "base"),
}


@pytest.mark.parametrize("name", NAMES)
def test_turbo_or_base_by_every_name_there_is(name, tmp_path):
    from candela.checkpoints.headers import Header
    from candela.checkpoints.variants import variant_of

    metadata, variant = NAMES[name]
    assert variant_of("z-image", tmp_path / name, Header(tmp_path / name, "", 0, {}, metadata)).name == variant


def test_another_scheduler_and_the_wrong_folders_are_named(split, tiny_models, tmp_path):
    scheduler = tmp_path / "scheduler"
    scheduler.mkdir()
    (scheduler / "scheduler_config.json").write_text('{"_class_name": "EulerDiscreteScheduler"}')
    from candela.families import family_of

    with pytest.raises(MismatchedModel, match=r"is sampled with a FlowMatchEuler.*this is a EulerDiscreteScheduler"):
        family_of(read_checkpoint(f"{split},scheduler={scheduler}"))
    with pytest.raises(MismatchedModel, match="a Qwen3Model, not a vae"):
        read_checkpoint(f"transformer=demo,text_encoder=demo,vae={DEMO_FOLDER / 'text_encoder'}")
    with pytest.raises(ModelNotFound, match="there is no folder /nowhere"):
        read_checkpoint("transformer=demo,text_encoder=demo,vae=demo,tokenizer=/nowhere")
    with pytest.raises(MismatchedModel, match=r"no tokenizer_config\.json"):
        read_checkpoint(f"transformer=demo,text_encoder=demo,vae=demo,tokenizer={DEMO_FOLDER / 'vae'}")


def test_a_broken_model_in_the_hub_cache_stops_nothing(split, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--stabilityai--sdxl-turbo" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (snapshot / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(MismatchedModel, match="brings no tokenizer"):
        read_checkpoint(split.partition(",tokenizer=")[0])


def test_gemma_s_embedding_stays_packed():
    from candela.checkpoints.packed import QuantizedEmbedding

    table = torch.randn(261, 32, generator=torch.Generator().manual_seed(1))
    from transformers.models.gemma.modeling_gemma import GemmaTextScaledWordEmbedding

    from candela.checkpoints.filling import _place
    from candela.checkpoints.packed import GGUFBlocks

    holder = torch.nn.Module()
    holder.embed = GemmaTextScaledWordEmbedding(261, 32, 0, embed_scale=32**0.5)
    data, kind = layouts.quantized(table, "Q8_0")
    packed = GGUFBlocks((261, 32), torch.from_numpy(data), kind.name)
    holder.embed.weight.data.copy_(packed.dense(torch.float32))
    ids = torch.tensor([[3, 7, 260]])
    wanted = holder.embed(ids)
    _place(holder, "embed.weight", packed, torch.device("cpu"), torch.float32)
    assert isinstance(holder.embed, QuantizedEmbedding)
    assert torch.equal(holder.embed(ids), wanted)


def test_a_tokenizer_may_lie_beside_weights(tmp_path, star_pixels):
    """As in a text encoder's own repository; and a link to nothing, as a hub cache has it, is told."""
    folder = shutil.copytree(TOKENIZER, tmp_path / "encoder")
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(5_000_000_000)  # a hole
    spec = f"transformer=demo,text_encoder=demo,vae=demo,tokenizer={folder}"
    assert pixels(Engine.load(spec, device="cpu").generate(STAR).images[0]) == star_pixels
    (folder / "merges.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DamagedFile, match=r"merges\.txt cannot be read"):
        Engine.load(spec, device="cpu")
