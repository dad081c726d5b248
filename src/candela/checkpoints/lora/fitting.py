"""Where each part of a LoRA goes in a model, or why it does not go anywhere. From shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from candela.checkpoints.architectures import Architecture, Piece
from candela.checkpoints.lora.file import PEFT, LoraFile, LoraModule, some, with_dots
from candela.errors import DamagedFile, MismatchedModel

Sizes = Mapping[str, tuple[int, int]]  # module of diffusers' class -> values out, values in

# Every complete set of factors; a bias, an alpha or magnitudes may come along.
FACTORS: tuple[set[str], ...] = (
    {"down", "up"},
    {"lokr_w1", "lokr_w2"},
    {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    {"diff"},
    set(),
)  # fmt: skip
BESIDE = {"alpha", "magnitude", "up_bias", "diff_b"}
REFUSED = {
    "lora_mid": "for a convolution (lora_mid)",
    "lokr_t2": "for a convolution (lokr_t2)",
    "hada_t1": "for a convolution (hada_t1)",
    "hada_t2": "for a convolution (hada_t2)",
    "set_weight": "a whole weight in place of the model's (set_weight)",
    "reshape_weight": "a weight of another shape (reshape_weight)",
}
FLOATS = {"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"}
INTEGERS = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"}  # an alpha may be one


@dataclass(frozen=True)
class Target:
    """Rows first..first + rows of what a LoRA's module computes belong to the model's module `name`."""

    name: str
    first: int
    rows: int


@dataclass(frozen=True)
class Placement:
    """One module of the file, and where it goes: three places for a fused projection, two for a shared one.

    `shape` is (values out, values in) of its product."""

    module: LoraModule
    shape: tuple[int, int]
    targets: tuple[Target, ...]


def fit(lora: LoraFile, architecture: Architecture, sizes: Sizes, family: str) -> tuple[Placement, ...]:
    """Places every module of `lora` in a model whose linear modules have `sizes`. All of them, or an error.

    Raises:
        MismatchedModel: made for another family (both are named), for another size (in numbers), for a text encoder,
            or of a kind that is not applied.
        DamagedFile: factors without their other half, or that do not fit each other.
    """
    if not lora.modules:
        _refuse_text(lora)
    flat = {name.replace(".", "_"): name for name in sizes}
    names = {module.stored: _homes(module, architecture, sizes, flat) for module in lora.modules}
    absent = [module.name for module in lora.modules if not names[module.stored]]
    foreign = lora.family is not None and lora.family != family
    if absent and foreign:
        raise MismatchedModel(
            f"{lora.path} is a LoRA for {lora.family}; the model is {family}. "
            f"{len(absent)} of its {len(lora.modules)} modules are not in it ({some(absent)}). "
            f"Choose a LoRA for {family}"
        )
    if absent:
        raise MismatchedModel(
            f"{lora.path}: {len(absent)} of its {len(lora.modules)} modules are not in this {family} as linear "
            f"layers ({some(absent)}): it was made for another model or size, or changes norms, which are not applied. "
            f"Choose a LoRA for {family}"
        )
    _refuse_text(lora)
    _refuse_unknown(lora)
    _refuse_settings(lora)
    placements = []
    for module in lora.modules:
        shape = product_shape(lora, module)
        placements.append(Placement(module, shape, _targets(lora, module, shape, names[module.stored], sizes, family)))
    taken: dict[str, str] = {}
    for placement in placements:
        for target in placement.targets:
            if taken.setdefault(target.name, placement.module.stored) != placement.module.stored:
                raise MismatchedModel(
                    f"{lora.path}: both {taken[target.name]} and {placement.module.stored} are for {target.name}. "
                    "Two LoRAs in one file are not applied; save them apart"
                )
    return tuple(placements)


def product_shape(lora: LoraFile, module: LoraModule) -> tuple[int, int]:
    """(values out, values in) of what the module's factors multiply to. (0, 0): nothing but a bias.

    Raises:
        MismatchedModel: of a kind that is not applied. DamagedFile: factors missing, or not fitting each other.
    """
    tensors, where = module.tensors, f"{lora.path}: {module.stored}"
    if refused := next((REFUSED[role] for role in tensors if role in REFUSED), None):
        raise MismatchedModel(f"{where} is {refused}, which Candela does not apply. Use a LoRA of linear layers only")
    factors = {role: tensor.shape for role, tensor in tensors.items() if role not in BESIDE}
    if set(factors) not in FACTORS or not (factors or "diff_b" in tensors):
        raise DamagedFile(
            f"{where} has {', '.join(sorted(tensors))}, and its other half is missing. Download the file again"
        )
    if any(0 in shape for shape in factors.values()):
        raise MismatchedModel(
            f"{where} has the rank 0 ({_listed(factors)}): nothing was trained there. Save it without that module"
        )
    numbers = {role: FLOATS | INTEGERS if role == "alpha" else FLOATS for role in tensors}
    if odd := next((tensor for role, tensor in tensors.items() if tensor.dtype not in numbers[role]), None):
        raise MismatchedModel(f"{lora.path}: {odd.name} is stored as {odd.dtype}. Take a version in 16 or 32 bits")
    if any(len(shape) != 2 for shape in factors.values()):
        raise MismatchedModel(
            f"{where} is for a convolution or a norm ({_listed(factors)}); Candela applies matrices. "
            "Use a LoRA of linear layers only"
        )

    def product(left: str, right: str) -> tuple[int, int]:
        one, two = factors[left], factors[right]
        if one[1] != two[0]:
            raise DamagedFile(
                f"{where}: {left} {list(one)} and {right} {list(two)} do not multiply. Download the file again"
            )
        return one[0], two[1]

    if "down" in factors:
        shape = product("up", "down")
    elif "diff" in factors:
        shape = (factors["diff"][0], factors["diff"][1])
    elif "hada_w1_a" in factors:
        shape = product("hada_w1_a", "hada_w1_b")
        if (other := product("hada_w2_a", "hada_w2_b")) != shape:
            raise DamagedFile(f"{where}: its two products are {list(shape)} and {list(other)}. Download the file again")
    elif factors:
        one, two = (
            (factors[f"lokr_w{k}"][0], factors[f"lokr_w{k}"][1])
            if f"lokr_w{k}" in factors
            else product(f"lokr_w{k}_a", f"lokr_w{k}_b")
            for k in (1, 2)
        )
        shape = (one[0] * two[0], one[1] * two[1])
    else:
        shape = (0, 0)
    _check_vectors(lora, module, shape)
    return shape


def _listed(factors: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{role} {list(shape)}" for role, shape in factors.items())


def _check_vectors(lora: LoraFile, module: LoraModule, shape: tuple[int, int]) -> None:
    """alpha: one number. Biases: a value per output. Magnitudes: one per output, or per input as [1, inputs]."""
    out, into = shape
    allowed: dict[str, set[tuple[int, ...]]] = {
        "alpha": {(), (1,)},
        "up_bias": {(out,)},
        "magnitude": {(out,), (out, 1), (1, into)},
    }
    for role, shapes in allowed.items():
        if role in module.tensors and (found := module.tensors[role].shape) not in shapes:
            raise DamagedFile(
                f"{lora.path}: {module.tensors[role].name} is {list(found)}, where "
                f"{' or '.join(str(list(each)) for each in sorted(shapes))} was expected. Download the file again"
            )


def _homes(module: LoraModule, architecture: Architecture, sizes: Sizes, flat: Mapping[str, str]) -> tuple[Piece, ...]:
    """The model's modules that `module` is for; empty where one of them is not in the model."""
    if module.name in sizes:
        return (Piece(module.name),)
    if (own := flat.get(module.name.replace(".", "_"))) is not None:
        return (Piece(own),)
    for name in (module.name, with_dots(module.name.replace(".", "_"))):  # musubi-tuner writes noise.refiner.0
        pieces = architecture.pieces(f"{name}.weight")
        homes = tuple(Piece(piece.name.removesuffix(".weight"), piece.part) for piece in pieces)
        if homes and all(piece.name in sizes for piece in homes):
            return homes
    return ()


def _targets(
    lora: LoraFile, module: LoraModule, shape: tuple[int, int], homes: tuple[Piece, ...], sizes: Sizes, family: str
) -> tuple[Target, ...]:
    """A fused projection's rows are query, key and value, each as long as the model's own."""
    fused = homes[0].part is not None
    rows = [sizes[home.name][0] for home in homes]
    out, into = sum(rows) if fused else rows[0], sizes[homes[0].name][1]
    bias = module.tensors.get("diff_b")
    if (bias and bias.shape != (out,)) or shape not in ((out, into), (0, 0)):
        found = f"takes {shape[1]} values and gives {shape[0]}" if shape != (0, 0) else "has a bias of another length"
        made = f"It was made for another model, or another size of {family}"
        if lora.family not in (None, family):
            made = f"It is a LoRA for {lora.family}; the model is {family}"
        raise MismatchedModel(
            f"{lora.path}: {module.name} {found}; in this {family} it takes {into} and gives {out}. {made}. "
            "Choose one for this model"
        )
    firsts = [sum(rows[:k]) if fused else 0 for k in range(len(rows))]
    return tuple(Target(home.name, first, count) for home, first, count in zip(homes, firsts, rows))


def _refuse_text(lora: LoraFile) -> None:
    if lora.text_encoder:
        raise MismatchedModel(
            f"{lora.path} changes the text encoder too: {len(lora.text_encoder)} of its tensors are for it "
            f"({some(lora.text_encoder)}). Candela applies LoRAs to the diffusion model only, and half of one would "
            "not be what its author made. Train or save it without the text encoder"
        )


def _refuse_unknown(lora: LoraFile) -> None:
    whole = [name for name in lora.unknown if name.endswith((".weight", ".bias")) and "lora" not in name]
    if whole and lora.modules:
        raise MismatchedModel(
            f"{lora.path} replaces weights or biases of the model beside its factors: {len(whole)} of its tensors "
            f"({some(whole)}), as peft's modules_to_save and bias settings do. Candela adds to weights and replaces "
            "none; train it without them"
        )
    if lora.unknown:
        raise MismatchedModel(
            f"{lora.path}: {len(lora.unknown)} of its tensors are of no known kind, or there twice "
            f"({some(lora.unknown)}). Applying the rest would not be what its author made; nothing is applied"
        )


def _refuse_settings(lora: LoraFile) -> None:
    """What peft keeps beside the tensors is there where it is needed, fits them, and is of a kind that is applied."""
    settings = lora.settings
    if settings is None:
        _refuse_lost_settings(lora)
        return
    if settings.refused:
        raise MismatchedModel(f"{lora.path} {settings.refused}")
    for module in lora.modules:
        if module.kind and module.kind.upper() != settings.kind:
            raise MismatchedModel(
                f"{lora.path}: {module.stored} is {module.kind}, and {settings.kind.lower()} by peft's settings. They "
                "do not belong together; keep each LoRA in a folder of its own"
            )
        rank = settings.rank_of(module.stored)
        if module.rank and rank != module.rank:
            raise MismatchedModel(
                f"{lora.path}: {module.stored} has the rank {module.rank}, and {rank:g} by peft's settings. They do "
                "not belong together; keep each LoRA in a folder of its own"
            )
        if settings.dora is not None and settings.dora != ("magnitude" in module.tensors):
            has, says = ("has no magnitudes", "is") if settings.dora else ("has magnitudes", "is not")
            raise MismatchedModel(
                f"{lora.path}: {module.stored} {has}, and by peft's settings it {says} a DoRA (use_dora). Save it again"
            )


def _refuse_lost_settings(lora: LoraFile) -> None:
    lost = [each for each in lora.modules if each.stored.startswith(PEFT) and "alpha" not in each.tensors]
    if not any(each.kind in ("lora", "loha", "lokr") for each in lost):
        return
    remedy = ""
    if lora.kinds == ("lora",) and len(lora.ranks) == 1:
        remedy = f'. If it is lost and you know the alpha, write {{"r": {lora.ranks[0]}, "lora_alpha": ALPHA}} into it'
    raise MismatchedModel(
        f"{lora.path} is a LoRA as peft saves it, and peft keeps its strength (alpha) in another file, "
        "adapter_config.json, which is not beside it. Keep both in a folder, under peft's names, "
        f"adapter_model.safetensors and adapter_config.json{remedy}"
    )
