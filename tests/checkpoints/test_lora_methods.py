"""What is no LoRA, or is one whose factors mean something else, is refused by its name: written by peft and LyCORIS."""

from __future__ import annotations

import copy
import json
import re
import warnings

import lycoris.logging
import peft
import pytest
import torch
from lycoris.kohya import create_network
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, VeloraConfig
from safetensors.torch import load_file, save_file

from candela import Engine
from candela.checkpoints.architectures import TRANSFORMERS
from candela.checkpoints.identity import identify
from candela.checkpoints.lora import fit, read_lora
from candela.checkpoints.lora.settings import _settings
from candela.cli.identify import described
from candela.engine.adapters import linear_sizes, read_tensors
from candela.errors import CheckpointError, DamagedFile, MismatchedModel

lycoris.logging.logger.setLevel("ERROR")
Z_IMAGE = next(architecture for architecture in TRANSFORMERS if architecture.name == "z-image")
ONE = {"target_modules": ["to_q", "w1"]}
MODULATION = {"r": 4, "target_modules": r"layers\.\d\.adaLN_modulation\.0"}
LORA = {"r": 4, "lora_alpha": 6} | ONE


@pytest.fixture(scope="module")
def transformer(tiny_models):
    return Engine.load(tiny_models["z-image"], device="cpu").components.transformer


def saved_by_peft(transformer, folder, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(copy.deepcopy(transformer), config).save_pretrained(folder)
    return folder / "adapter_model.safetensors"


def place(path, transformer):
    return fit(read_lora(path), Z_IMAGE, linear_sizes(transformer), "z-image")


OTHERS = {
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=8, target_modules=["to_q"]),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["to_q"]),
    "IA3": lambda: peft.IA3Config(feedforward_modules=["w1"], **ONE),
    "VeRA": lambda: peft.VeraConfig(r=4, **ONE),
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=4, total_step=10, **ONE),
    r"trained norms \(LN tuning\)": lambda: peft.LNTuningConfig(target_modules=["attention_norm1"]),
    "HRA": lambda: peft.HRAConfig(r=4, **ONE),
    "HiRA": lambda: peft.HiraConfig(r=4, **ONE),
    "GLoRA": lambda: peft.GloraConfig(r=4, **ONE),
    "GraLoRA": lambda: peft.GraloraConfig(r=4, target_modules=["to_q"]),
    "DeLoRA": lambda: peft.DeloraConfig(r=4, **ONE),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=10, **ONE),
    "WaveFT": lambda: peft.WaveFTConfig(n_frequency=10, target_modules=["to_q"]),
    "VB-LoRA": lambda: peft.VBLoRAConfig(r=2, vector_length=4, num_vectors=8, target_modules=["to_q"]),
    "RandLoRA": lambda: peft.RandLoraConfig(r=4, **ONE),
    "SHiRA": lambda: peft.ShiraConfig(r=2, **ONE),
    "RoAd": lambda: peft.RoadConfig(group_size=8, target_modules=["to_q"]),
    "MiSS": lambda: peft.MissConfig(r=8, target_modules=["to_q"]),
    "C3A": lambda: peft.C3AConfig(block_size=8, target_modules=["to_q"]),
    "PSOFT": lambda: peft.PsoftConfig(r=4, **ONE),
    "Poly": lambda: peft.PolyConfig(r=4, **ONE),
    "KaSA": lambda: peft.LoraConfig(kasa_config=KasaConfig(), **LORA),
    "VeLoRA": lambda: peft.LoraConfig(velora_config=VeloraConfig(), **LORA),
}


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_of_peft(transformer, tmp_path, method):
    path = saved_by_peft(transformer, tmp_path, OTHERS[method]())
    with pytest.raises(MismatchedModel, match=f"is no LoRA but {method}: .*Merge it into its model"):
        read_lora(path)
    assert re.search(f"no model and no LoRA, but {method}, which", "".join(described(identify(path))))


@pytest.mark.parametrize(
    ("algo", "options", "method"),
    [
        ("diag-oft", {}, "OFT"),
        ("boft", {}, "BOFT"),
        ("glora", {}, "GLoRA"),
        ("ia3", {}, "IA3"),
        ("tlora", {}, "T-LoRA"),
        ("lora", {"train_norm": True}, r"trained norms \(LN tuning\)"),
    ],
)
def test_other_methods_of_lycoris(tmp_path, algo, options, method):
    class Block(torch.nn.Module):  # of sizes and a norm that all of them take
        def __init__(self):
            super().__init__()
            self.to_q, self.norm = torch.nn.Linear(32, 32), torch.nn.LayerNorm(32)

    (tmp_path / "preset.toml").write_text('enable_conv = false\nunet_target_module = ["Block"]\n')
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([Block()])})
    options = {"algo": algo, "preset": str(tmp_path / "preset.toml"), "constraint": 1} | options
    network = create_network(1.0, 4, 6, None, [], model, **options)
    network.apply_to([], model, False, True)
    network.save_weights(str(tmp_path / "l.safetensors"), torch.float32, {})
    with pytest.raises(MismatchedModel, match=f"is no LoRA but {method}: "):
        read_lora(tmp_path / "l.safetensors")


STARTS = {
    "pissa": ("PiSSA", "path_initial_model_for_weight_conversion"),
    "pissa_niter_4": ("PiSSA", "path_initial_model_for_weight_conversion"),
    "olora": ("OLoRA", "path_initial_model_for_weight_conversion"),
}


@pytest.mark.parametrize("start", STARTS)
def test_factors_that_fit_changed_weights_alone(transformer, tmp_path, start):
    """peft takes the first product from the model's weights: B A does not belong to those that Candela has."""
    path = saved_by_peft(transformer, tmp_path, peft.LoraConfig(init_lora_weights=start, **LORA))
    with pytest.raises(MismatchedModel, match=f"trained as {STARTS[start][0]} .*{STARTS[start][1]}"):
        place(path, transformer)


@pytest.mark.parametrize("start", [False, "gaussian", "eva", "mica", "orthogonal"])
def test_factors_that_fit_the_model_as_it_is(transformer, tmp_path, start):
    path = saved_by_peft(transformer, tmp_path, peft.LoraConfig(**LORA))
    settings = json.loads((tmp_path / "adapter_config.json").read_text()) | {"init_lora_weights": start}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert len(place(path, transformer)) == 8


REFUSED = {
    "corda": ({"init_lora_weights": "corda"}, "trained as CorDA .*path_initial_model"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, "trained as LoRA-GA .*path_initial_model"),
    "loftq": ({"init_lora_weights": "loftq"}, "trained as LoftQ .*Load the model that it was merged into"),
    "unheard of": (
        {"init_lora_weights": "zorro"},
        "'zorro' among .*; whether that changes the model's own weights is not known",
    ),
    "QALoRA": ({"use_qalora": True}, " is QALoRA, by peft's settings"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, " is Activated LoRA, by peft's settings"),
    "parameters": ({"target_parameters": ["to_q.weight"]}, " is a LoRA of parameters"),
    "replicated": ({"layer_replication": [[0, 1], [0, 1]]}, " is a LoRA of replicated layers"),
    "X-LoRA": ({"peft_type": "XLORA"}, " is XLORA, by peft's settings"),
    "LoHa's settings": ({"peft_type": "LOHA", "alpha": 3}, "is lora, and loha by peft's settings"),
    "another rank": ({"r": 8}, "has the rank 4, and 8 by peft's settings"),
    "another rank by pattern": ({"rank_pattern": {"w1": 2}}, "w1 has the rank 4, and 2 by peft's settings"),
    "lost magnitudes": ({"use_dora": True}, "has no magnitudes, and by peft's settings it is a DoRA"),
}


@pytest.fixture(scope="module")
def plain(transformer, tmp_path_factory):
    return saved_by_peft(transformer, tmp_path_factory.mktemp("plain"), peft.LoraConfig(**LORA))


@pytest.mark.parametrize("case", REFUSED)
def test_settings_under_which_the_factors_mean_something_else(transformer, plain, tmp_path, case):
    changes, words = REFUSED[case]
    settings = json.loads(plain.with_name("adapter_config.json").read_text()) | changes
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(plain.read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(MismatchedModel, match=words):
        place(path, transformer)
    # As diffusers writes them into the file.
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": each for key, each in settings.items()})}
    tensors = {name.replace("base_model.model.", "transformer."): each for name, each in load_file(path).items()}
    save_file(tensors, tmp_path / "diffusers.safetensors", metadata)
    with pytest.raises(MismatchedModel, match=words):
        place(tmp_path / "diffusers.safetensors", transformer)


BESIDE = {
    "bias='all'": (peft.LoraConfig(bias="all", **MODULATION), "replaces weights or biases"),
    "bias='lora_only'": (peft.LoraConfig(bias="lora_only", **MODULATION), "replaces .* biases"),
    "modules_to_save": (peft.LoraConfig(modules_to_save=["to_k"], **LORA), r"to_k.weight.*modules_to_save"),
    "BD-LoRA": (
        peft.LoraConfig(use_bdlora=BdLoraConfig(nblocks=2, target_modules_bd_a=["to_q"]), r=4, target_modules=["to_q"]),
        " is BD-LoRA, by peft's settings",
    ),
}


@pytest.mark.parametrize("case", BESIDE)
def test_more_than_factors(transformer, tmp_path, case):
    config, words = BESIDE[case]
    with pytest.raises(MismatchedModel, match=words):
        place(saved_by_peft(transformer, tmp_path, config), transformer)


def test_the_rank_nought(transformer, tmp_path):
    path, name = tmp_path / "l.safetensors", "transformer.layers.0.attention.to_q"
    save_file({f"{name}.lora_A.weight": torch.ones(0, 32), f"{name}.lora_B.weight": torch.ones(32, 0)}, path)
    with pytest.raises(MismatchedModel, match=r"to_q has the rank 0 \(down \[0, 32\], up \[32, 0\]\)"):
        place(path, transformer)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.float64, torch.bfloat16])
def test_an_alpha_in_any_type_of_number(transformer, tmp_path, dtype):
    path, name = tmp_path / "l.safetensors", "lora_unet_layers_0_attention_to_q"
    factors = {f"{name}.lora_down.weight": torch.ones(2, 32), f"{name}.lora_up.weight": torch.ones(32, 2)}
    save_file(factors | {f"{name}.alpha": torch.tensor(6, dtype=dtype)}, path)
    (placement,) = place(path, transformer)
    assert read_lora(path).scale(placement.module, 6.0) == 3.0


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ({"((((a{1,1000}){1,1000}){1,1000}){1,1000})x": 1}, "take longer than 1 s"),
        ({"x" * 501: 1}, "longer than 500 characters"),
        ({"to_(q": 1}, "no regular expression: missing"),
        ({f"{'a?' * 60}{n}": 1 for n in range(20_000)}, "take longer than 1 s"),
        ({"to_q": "many"}, "could not convert"),
    ],
)
def test_patterns_that_cannot_be_used(transformer, plain, tmp_path, patterns, words):
    settings = json.loads(plain.with_name("adapter_config.json").read_text()) | {"alpha_pattern": patterns}
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(plain)
    tensors |= {f"base_model.model.{'a' * 60}.{name}": torch.ones(1, 1) for name in ("lora_A.weight", "lora_B.weight")}
    save_file(tensors, path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=rf"settings, as peft writes them, cannot be used \(.*({words})"):
        read_lora(path)


PATTERNS = (
    "to_q", "o_q", "w1", "attention.to_q", "layers.0.attention", "^layers.0", "^layers.0.attention.to_q", ".*",
    "to_[qk]", "(to_q|w1)", r".*\.0\..*", r"layers\.\d\.attention\.to_q",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_as_peft_matches_them(pattern):
    ends = ("attention.to_q", "attention.to_k", "feed_forward.w1")
    names = [f"{part}.{number}.{end}" for part in ("layers", "noise_refiner") for number in (0, 1) for end in ends]
    settings = _settings({"r": 2, "lora_alpha": 1, "alpha_pattern": {pattern: 2, "to_k": 3}}, names)
    for name in names:
        key = peft.utils.other.get_pattern_key([pattern, "to_k"], name)
        assert settings.alpha_of(name) == {pattern: 2, "to_k": 3}.get(key, 1)


def test_settings_without_end(transformer, plain, tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(plain.read_bytes())
    with open(tmp_path / "adapter_config.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"adapter_config.json has 1,099,511,627,776 bytes"):
        read_lora(path)


def test_an_infinite_alpha(transformer, tmp_path):
    """Of two whole factors it does not; of others it is damage."""
    path, name = tmp_path / "l.safetensors", "diffusion_model.layers.0.attention.to_q"
    whole = {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(8, 8), "alpha": torch.tensor(torch.inf)}
    halves = {"lokr_w1": torch.ones(4, 4), "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(2, 8)}
    save_file({f"{name}.{role}": tensor for role, tensor in whole.items()}, path)
    file = read_lora(path)
    (tensors,) = read_tensors(file, place(path, transformer))
    assert "alpha" not in tensors
    assert file.scale(file.modules[0], None) == 1.0
    save_file(
        {f"{name}.{role}": tensor for role, tensor in (halves | {"alpha": torch.tensor(torch.inf)}).items()}, path
    )
    with pytest.raises(DamagedFile, match="alpha holds NaN or infinite"):
        read_tensors(read_lora(path), place(path, transformer))
