"""A LoRA gives the picture that the program gives which trained it: each kind is trained for some steps, saved by the
program's own code, and held against the picture of its own forward. Every alpha is another number than the rank, but
where the program makes it the rank.

`pytest tests/engine/test_lora_programs.py -s -n0` prints how far each LoRA moves the picture, and how far ours is from
theirs, as the largest difference of a channel of 255."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoHaConfig, LoKrConfig, LoraConfig
from safetensors.torch import load_file

from candela.checkpoints.headers import read_header
from candela.checkpoints.lora.file import with_dots
from tests.lora_programs import (
    AB,
    TARGETS,
    Bench,
    by_module,
    dotted,
    flat,
    folded,
    musubi_fused,
    musubi_name,
    save,
    with_diffusers,
    with_lycoris,
    with_peft,
)

RANK, ALPHA = 4, 6
Trained = tuple[Path, np.ndarray]
Write = Callable[[Bench, Path], Trained]


def peft(make: type = LoraConfig, converted: bool = False, **options) -> Write:
    kind = {"lora_alpha": ALPHA} if make is LoraConfig else {"alpha": ALPHA}
    config = {"r": RANK, "target_modules": TARGETS} | kind | options
    return lambda bench, folder: with_peft(bench, folder, make(**config), converted=converted)


def diffusers(**options) -> Write:
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS} | options
    return lambda bench, folder: with_diffusers(bench, folder, LoraConfig(**config))


def lycoris(algo: str, dim: int = RANK, alpha: float = ALPHA, **options) -> Write:
    return lambda bench, folder: with_lycoris(bench, folder, algo, dim, alpha, **options)


def rewritten(write: Write, spell: Callable[[dict], dict]) -> Write:
    """What LyCORIS trained, under another program's names: `spell` gets the tensors by module and role."""

    def both(bench: Bench, folder: Path) -> Trained:
        path, picture = write(bench, folder)
        return save(folder / "rewritten.safetensors", spell(by_module(path, bench))), picture

    return both


def exported_for_kohya(bench: Bench, folder: Path, **options) -> Trained:
    """diffusers' convert_state_dict_to_kohya writes the rank for alpha, as an int64: the picture is that of B A."""
    path, picture = with_diffusers(
        bench, folder, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, **options)
    )
    return save(folder / "kohya.safetensors", convert_state_dict_to_kohya(load_file(path))), picture


def musubi_default(modules: dict) -> dict:
    """convert_lora.py --target default: alpha is the rank, as an int64."""
    modules = folded(modules)
    for own in modules.values():
        own["alpha"] = torch.tensor(own["lora_down.weight"].shape[0])
    return flat("lora_unet_", modules)


def musubi_other(modules: dict) -> dict:
    """convert_lora.py --target other."""
    if "lora_down.weight" in next(iter(modules.values())):
        modules = folded(modules, down=True)
    return dotted("diffusion_model.", {musubi_name(name.replace(".", "_")): own for name, own in modules.items()}, AB)


def one_trainer_diffusers(modules: dict) -> dict:
    """convert_to_diffusers: magnitudes per output under peft's name; those per input keep theirs."""
    tensors = dotted("transformer.", folded(modules), AB)
    for name in [name for name, tensor in tensors.items() if name.endswith("dora_scale") and tensor.shape[0] != 1]:
        tensors[name.replace("dora_scale", "lora_magnitude_vector.weight")] = tensors.pop(name).flatten()
    return tensors


def ai_toolkit_dora(modules: dict) -> dict:
    """DoRA.py: magnitudes [out], no alpha."""
    tensors = dotted("diffusion_model.", folded(modules), AB)
    return {
        name.replace("dora_scale", "magnitude"): t.flatten() if "dora" in name else t for name, t in tensors.items()
    }


def ai_toolkit_lokr(bench: Bench, folder: Path) -> Trained:
    """lokr_full_rank: all in float16, where the alpha 9999999999 is infinite."""
    path, _ = with_lycoris(bench, folder, "lokr", 2, 3, full_matrix=True)
    modules = by_module(path, bench)
    for own in modules.values():
        own["alpha"] = torch.tensor(9999999999)
    tensors = {name: tensor.half() for name, tensor in dotted("diffusion_model.", modules).items()}
    deltas = {
        name: torch.kron(own["lokr_w1"].half().float(), own["lokr_w2"].half().float()) for name, own in modules.items()
    }
    return save(folder / "ai-toolkit.safetensors", tensors), bench.merged(deltas)


def diff_synth(bench: Bench, folder: Path) -> Trained:
    """peft's adapters within the pipeline's dit; its loader takes B A as it is."""
    path, picture = with_diffusers(bench, folder, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    tensors = {
        name.replace("transformer.", "pipe.dit.").replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(path).items()
    }
    return save(folder / "step-1.safetensors", tensors), picture


def simple_tuner(bench: Bench, folder: Path) -> Trained:
    """convert_diffusers_to_comfyui: diffusers' file under ComfyUI's prefix, with its settings and with alphas."""
    path, picture = with_diffusers(bench, folder, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    tensors = {name.replace("transformer.", "diffusion_model."): tensor for name, tensor in load_file(path).items()}
    modules = {name.partition(".lora_")[0] for name in tensors}
    tensors |= {f"{name}.alpha": torch.tensor(float(ALPHA)) for name in modules}
    return save(folder / "simpletuner.safetensors", tensors, read_header(path).metadata), picture


def diffusion_pipe_lumina(bench: Bench, folder: Path) -> Trained:
    """models/lumina_2.py: the authors' names, fused, and peft's settings beside the file."""
    path, picture = kohya_lumina(bench, folder, split=False)
    modules: dict[str, dict] = {}
    for name, tensor in load_file(path).items():
        module, _, role = name.removeprefix("lora_unet_").partition(".")
        modules.setdefault(with_dots(module), {})[role] = tensor
    for own in modules.values():
        del own["alpha"]
    LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(modules)).save_pretrained(folder)
    return save(folder / "adapter_model.safetensors", dotted("diffusion_model.", modules, AB)), picture


def kohya_lumina(bench: Bench, folder: Path, split: bool) -> Trained:
    """networks/lora_lumina.py: the authors' names, query, key and value in one. With split_qkv they have factors of
    their own, which are saved as one product of three times the rank, with the alpha of one; it is loaded as
    alpha / (3 rank)."""
    path, _ = with_diffusers(bench, folder, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    halves = load_file(path)
    names = sorted({name.removeprefix("transformer.").rpartition(".lora_")[0] for name in halves})
    down = {name: halves[f"transformer.{name}.lora_A.weight"] for name in names}
    up = {name: halves[f"transformer.{name}.lora_B.weight"] for name in names}
    tensors, deltas = {}, {}

    def add(own: str, one: torch.Tensor, two: torch.Tensor, targets: list[str]) -> None:
        spelled = "lora_unet_" + own.replace(".", "_")
        tensors[f"{spelled}.lora_down.weight"], tensors[f"{spelled}.lora_up.weight"] = one, two
        tensors[f"{spelled}.alpha"] = torch.tensor(float(ALPHA))
        product = two @ one * (ALPHA / len(one))
        deltas.update(zip(targets, product.split([len(up[target]) for target in targets])))

    words = {"attn": "attention", "to_out.0": "out", "linear_": "w"}
    for name in names:
        own = name
        for theirs, ours in words.items():
            own = own.replace(theirs, ours)
        if name.endswith("to_q"):
            parts = [name.removesuffix("q") + part for part in "qkv"]
            one = torch.cat([down[part] for part in parts]) if split else down[name]
            two = (torch.block_diag if split else lambda *each: torch.cat(each))(*(up[part] for part in parts))
            add(own.replace("to_q", "qkv"), one, two, parts)
        elif not name.endswith(("to_k", "to_v")):
            add(own, down[name], up[name], [name])
    return save(folder / "kohya.safetensors", tensors), bench.merged(deltas)


PATTERNS = {
    "rank_pattern": {r"layers\.\d+\.attention\.to_(q|k)": 2, "^noise_refiner.*w1": 3},
    "alpha_pattern": {r".*refiner\.0\..*": 9, "to_(v|out.0)": 2, "w[13]": 7, "^attention.to_q": 99},
}
Z_IMAGE: dict[str, Write] = {
    "peft LoRA": peft(),
    "peft rsLoRA": peft(use_rslora=True, lora_alpha=5),
    "peft LoRA with biases (lora_bias)": peft(lora_bias=True),
    "peft LoRA, patterns": peft(**PATTERNS),
    "peft rsLoRA, patterns": peft(use_rslora=True, **PATTERNS),
    "peft LoRA of some layers": peft(
        target_modules=["to_q", "w1"], layers_to_transform=[1], layers_pattern="layers", exclude_modules=["w3"]
    ),
    "peft LoRA, orthogonal": peft(init_lora_weights="orthogonal"),
    "peft MiCA": peft(init_lora_weights="mica"),
    "peft PiSSA, converted": peft(init_lora_weights="pissa", converted=True),
    "peft PiSSA, rsLoRA, converted": peft(init_lora_weights="pissa", use_rslora=True, converted=True),
    "peft OLoRA, patterns, converted": peft(init_lora_weights="olora", converted=True, **PATTERNS),
    "peft DoRA": peft(use_dora=True),
    "peft DoRA, rsLoRA, patterns": peft(use_dora=True, use_rslora=True, **PATTERNS),
    "peft LoHa": peft(LoHaConfig),
    "peft LoHa, patterns": peft(LoHaConfig, **PATTERNS),
    "peft LoKr, both factors whole": peft(LoKrConfig, r=8),
    "peft LoKr, both whole, patterns": peft(LoKrConfig, r=8, alpha_pattern=PATTERNS["alpha_pattern"]),
    "peft LoKr": peft(LoKrConfig, r=2),
    "peft LoKr, patterns": peft(LoKrConfig, r=8, **PATTERNS),
    "peft LoKr, decompose_both": peft(LoKrConfig, r=1, decompose_both=True),
    "peft LoKr, decompose_factor": peft(LoKrConfig, r=2, decompose_factor=8),
    "peft LoKr, as LyCORIS starts": peft(LoKrConfig, r=2, init_weights="lycoris"),
    "LyCORIS LoRA": lycoris("lora"),
    "LyCORIS LoCon, scalar": lycoris("locon", use_scalar=True),
    "LyCORIS LoRA for kohya, rank-stabilised": lycoris("lora", kohya=True, rs_lora=True),
    "LyCORIS LoHa": lycoris("loha"),
    "LyCORIS LoHa for kohya, scalar, rank-stabilised": lycoris("loha", kohya=True, rs_lora=True, use_scalar=True),
    "LyCORIS LoKr, both factors whole": lycoris("lokr", 8),
    "LyCORIS LoKr, full_matrix": lycoris("lokr", 2, full_matrix=True),
    "LyCORIS LoKr": lycoris("lokr", 2),
    "LyCORIS LoKr, decompose_both": lycoris("lokr", 1, decompose_both=True),
    "LyCORIS LoKr, factor, unbalanced": lycoris("lokr", 2, factor=4, unbalanced_factorization=True),
    "LyCORIS LoKr for kohya, scalar, rank-stabilised": lycoris("lokr", 2, kohya=True, rs_lora=True, use_scalar=True),
    "LyCORIS DoRA by output": lycoris("lora", dora_wd=True),
    "LyCORIS DoRA by input": lycoris("lora", dora_wd=True, wd_on_output=False),
    "LyCORIS LoHa with DoRA by output": lycoris("loha", dora_wd=True),
    "LyCORIS LoHa with DoRA by input": lycoris("loha", dora_wd=True, wd_on_output=False),
    "LyCORIS LoKr with DoRA by output": lycoris("lokr", 2, dora_wd=True),
    "LyCORIS LoKr with DoRA by input": lycoris("lokr", 2, dora_wd=True, wd_on_output=False),
    "LyCORIS full": lycoris("full"),
    "diffusers LoRA": diffusers(),
    "diffusers rsLoRA, patterns": diffusers(use_rslora=True, **PATTERNS),
    "diffusers LoRA with biases": diffusers(lora_bias=True),
    "diffusers DoRA": diffusers(use_dora=True),
    "diffusers' export for kohya": exported_for_kohya,
    "diffusers' export for kohya, DoRA": lambda bench, folder: exported_for_kohya(bench, folder, use_dora=True),
    "musubi-tuner LoRA": rewritten(lycoris("lora"), lambda m: flat("lora_unet_", m)),
    "musubi-tuner LoRA, --target default": rewritten(lycoris("lora"), musubi_default),
    "musubi-tuner LoRA, --target other": rewritten(lycoris("lora"), musubi_other),
    "musubi-tuner LoHa, --target other": rewritten(lycoris("loha"), musubi_other),
    "musubi-tuner LoKr, --target other": rewritten(lycoris("lokr", 2), musubi_other),
    "musubi-tuner LoRA for ComfyUI": rewritten(lycoris("lora"), lambda m: flat("lora_unet_", musubi_fused(m))),
    "musubi-tuner LoHa for ComfyUI": rewritten(lycoris("loha"), lambda m: flat("lora_unet_", musubi_fused(m))),
    "OneTrainer LoRA": rewritten(lycoris("lora"), lambda m: dotted("transformer.", m)),
    "OneTrainer LoRA, mixed names": rewritten(lycoris("lora"), lambda m: flat("lora_transformer_", m)),
    "OneTrainer LoRA for diffusers": rewritten(lycoris("lora"), one_trainer_diffusers),
    "OneTrainer DoRA for diffusers": rewritten(lycoris("lora", dora_wd=True), one_trainer_diffusers),
    "OneTrainer DoRA by input for diffusers": rewritten(
        lycoris("lora", dora_wd=True, wd_on_output=False), one_trainer_diffusers
    ),
    "OneTrainer DoRA by input for ComfyUI": rewritten(
        lycoris("lora", dora_wd=True, wd_on_output=False), lambda m: dotted("diffusion_model.", m, AB)
    ),
    "OneTrainer LoHa": rewritten(lycoris("loha"), lambda m: dotted("transformer.", m)),
    "OneTrainer LoKr with DoRA": rewritten(lycoris("lokr", 2, dora_wd=True), lambda m: dotted("transformer.", m)),
    "ai-toolkit LoRA": rewritten(lycoris("lora"), lambda m: dotted("diffusion_model.", folded(m), AB)),
    "ai-toolkit DoRA": rewritten(lycoris("lora", dora_wd=True), ai_toolkit_dora),
    "ai-toolkit LoKr, full rank in float16": ai_toolkit_lokr,
    "DiffSynth-Studio LoRA": diff_synth,
    "SimpleTuner LoRA for ComfyUI": simple_tuner,
}  # fmt: skip
LUMINA: dict[str, Write] = {
    "peft LoRA": peft(),
    "peft LoKr, both factors whole": peft(LoKrConfig, r=8),
    "diffusers LoRA": diffusers(),
    "diffusers DoRA, patterns": diffusers(use_dora=True, alpha_pattern={"attn.to_(q|k)": 2}),
    "diffusers' export for kohya": exported_for_kohya,
    "kohya LoRA": lambda bench, folder: kohya_lumina(bench, folder, split=False),
    "kohya LoRA, split_qkv": lambda bench, folder: kohya_lumina(bench, folder, split=True),
    "diffusion-pipe LoRA": diffusion_pipe_lumina,
}
CASES = {("z-image", name): write for name, write in Z_IMAGE.items()}
CASES |= {("lumina-image-2", name): write for name, write in LUMINA.items()}


@pytest.fixture(scope="module")
def benches(tiny_models):
    made: dict[str, Bench] = {}
    return lambda family: made.get(family) or made.setdefault(family, Bench(tiny_models[family]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_picture_is_that_of_the_program(benches, tmp_path, family, name):
    bench = benches(family)
    path, theirs = CASES[family, name](bench, tmp_path)
    ours = bench.ours(path)
    effect, difference = abs(theirs - bench.plain).max(), abs(ours - theirs).max()
    print(f"\n{family:15} {name:50} changes {effect:3}/255, differs by {difference}/255", end="")
    assert effect > 40, "the LoRA changes too little to tell one strength from another"
    assert difference <= 1


def test_the_documentation_lists_what_is_compared():
    text = (Path(__file__).parents[2] / "docs" / "lora.md").read_text(encoding="utf-8")
    table = text.partition("| model | trained and saved by |\n|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [f"| {family} | {name} |" for family, name in CASES]
