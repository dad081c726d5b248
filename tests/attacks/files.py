"""Hostile files, made here and kept nowhere: `python -m tests.attacks.files FOLDER [NAME...]` writes all, or some.

What each must end in is beside it: the name of our error, or OK for a file that is only odd and gets an answer.
`test_attacks.py` runs them all; `candela identify FILE` and `candela generate --model ...` run one by hand.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from candela.checkpoints.catalogue import DEMO_FOLDER
from tests.attacks.texts import ESCAPES, TEMPLATES, TOKENIZERS

OK = "OK"
DAMAGED, MISMATCHED, MISSING = "DamagedFile", "MismatchedModel", "ModelNotFound"
DEMO_FILES = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
EMOJI = "\U0001f600"


@dataclass(frozen=True)
class Attack:
    """One hostile file or folder.

    Attributes:
        write: empty folder -> the path in it to give to Candela.
        identified, loaded: what `candela identify` and loading end in: the name of an error, or OK.
        component: what the file is given as; empty for a whole model.
    """

    name: str
    tries: str
    write: Callable[[Path], Path]
    identified: str
    loaded: str
    component: str


ATTACKS: dict[str, Attack] = {}


def attack(identified: str, loaded: str = "", component: str = "transformer") -> Callable[[Callable], Callable]:
    """Registers a function(folder) -> path; its docstring says what it tries."""

    def register(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
        add(write.__name__, write.__doc__ or "", write, identified, loaded, component)
        return write

    return register


def add(
    name: str,
    tries: str,
    write: Callable[[Path], Path],
    identified: str,
    loaded: str = "",
    component: str = "transformer",
) -> None:
    assert name not in ATTACKS and tries, name
    ATTACKS[name] = Attack(name, tries, write, identified, loaded or identified, component)


def model_of(attack: Attack, path: Path) -> str:
    """What `--model` takes to load the attack among the demo's other components."""
    if not attack.component:
        return str(path)
    names = ["transformer", "text_encoder", "vae"]
    places = {name: path if name == attack.component else "demo" for name in names}
    if not (attack.component == "text_encoder" and "tokenizer" in attack.name):
        places["tokenizer"] = "demo"
    return ",".join(f"{name}={place}" for name, place in places.items())


def file_attack(name: str, tries: str, data: Callable[[], bytes], identified: str = DAMAGED, loaded: str = "") -> None:
    """One whose whole content is `data`; .gguf where the content says so."""

    def write(folder: Path) -> Path:
        content = data()
        path = folder / f"{name}.{'gguf' if name.startswith('gguf') else 'safetensors'}"
        path.write_bytes(content)
        return path

    add(name, tries, write, identified, loaded)


# --- safetensors: bytes -----------------------------------------------------------------------


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; `length` lies about its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: Any = (2, 2), offsets: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def plain() -> bytes:
    return packed({"a": entry()}, bytes(16))


for cut in (0, 1, 7, 8, 9, 20, len(plain()) - 17, len(plain()) - 16, len(plain()) - 1):
    file_attack(f"truncated_at_{cut}", f"a valid file that ends after {cut} bytes", lambda cut=cut: plain()[:cut])

LENGTHS = {"0": 0, "1": 1, "2_63": 2**63, "2_64": 2**64 - 1, "file_size": len(plain()) - 8 + 1, "17_million": 17 << 20}
for label, number in LENGTHS.items():
    file_attack(
        f"length_{label}",
        f"a header length of {number}",
        lambda number=number: packed({"a": entry()}, bytes(16) if number < 1 << 20 else bytes(18 << 20), number),
    )

LYING: dict[str, tuple[str, Callable[[], bytes]]] = {
    "longer": ("bytes that no tensor owns, behind the last", lambda: plain() + b"more"),
    "hole": ("a hole between header and data", lambda: packed({"a": entry(offsets=(8, 24))}, bytes(24))),
    "hole_between": (
        "a hole between two tensors",
        lambda: packed({"a": entry(), "b": entry(offsets=(32, 48))}, bytes(48)),
    ),
    "overlap": (
        "two tensors over the same bytes",
        lambda: packed({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24)),
    ),
    "same_bytes": (
        "many tensors that are the same bytes: 160 KB of values in 16",
        lambda: packed({f"a{k}": entry() for k in range(10_000)}, bytes(16)),
    ),
    "beyond": ("a tensor behind the end of the file", lambda: packed({"a": entry(offsets=(1 << 40, (1 << 40) + 16))})),
    "backwards": ("a tensor that ends before it begins", lambda: packed({"a": entry(offsets=(16, 0))}, bytes(16))),
    "negative_offset": ("a tensor inside the header", lambda: packed({"a": entry(offsets=(-16, 0))})),
    "shape_overflow": (
        "a shape whose product is 0 in 64 bits",
        lambda: packed({"a": entry(shape=[2**32, 2**32], offsets=(0, 0))}),
    ),
    "shape_wide": ("sixteen sides of 2**47", lambda: packed({"a": entry(shape=[2**47] * 16)}, bytes(16))),
    "shape_long": ("a shape of 100,000 sides", lambda: packed({"a": entry(shape=[1] * 100_000)}, bytes(16))),
    "shape_object": ("a shape that is an object", lambda: packed({"a": entry(shape={}, offsets=(0, 4))}, bytes(4))),
    "shape_text": ("a shape that is a text", lambda: packed({"a": entry(shape="", offsets=(0, 4))}, bytes(4))),
    "offsets_three": ("three offsets", lambda: packed({"a": entry(offsets=(0, 8, 16))}, bytes(16))),
    "offsets_text": ("offsets that are a text", lambda: packed({"a": entry(offsets="09")}, bytes(16))),
    "dtype_unknown": ("a type that there is not", lambda: packed({"a": entry(dtype="F31")}, bytes(16))),
    "dtype_list": ("a type that is a list", lambda: packed({"a": entry(dtype=["F32"])}, bytes(16))),
    "dtype_long": ("a type with a name of a megabyte", lambda: packed({"a": entry(dtype="F" * 1_000_000)}, bytes(16))),
    "entry_list": ("a tensor that is a list", lambda: packed({"a": [1, 2]})),
    "entry_number": ("a tensor that is a number", lambda: packed({"a": 7})),
    "duplicate": (
        "two tensors of one name: which one a reader sees depends on the reader",
        lambda: packed(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(16)),
    ),
    "duplicate_key": (
        "a tensor with two shapes",
        lambda: packed(b'{"a":{"dtype":"F32","shape":[4],"shape":[2,2],"data_offsets":[0,16]}}', bytes(16)),
    ),
    "header_list": ("a header that is a list", lambda: packed([1, 2, 3])),
    "header_number": ("a header that is a number", lambda: packed(b"12345")),
    "header_null": ("a header that is null", lambda: packed(b"null")),
    "metadata_list": ("metadata that is a list", lambda: packed({"__metadata__": [1], "a": entry()}, bytes(16))),
    "metadata_empty_list": ("metadata that is []", lambda: packed({"__metadata__": [], "a": entry()}, bytes(16))),
    "metadata_nested": (
        "metadata with an object where a text belongs",
        lambda: packed({"__metadata__": {"config": {"a": [1]}}, "a": entry()}, bytes(16)),
    ),
    "bom": (
        "a byte order mark before the header",
        lambda: packed(b"\xef\xbb\xbf" + json.dumps({"a": entry()}).encode(), bytes(16)),
    ),
    "utf16": ("a header in UTF-16", lambda: packed(json.dumps({"a": entry()}).encode("utf-16"), bytes(16))),
    "invalid_utf8": (
        "bytes that are no text in a name",
        lambda: packed(b'{"\xff\xfe":%b}' % json.dumps(entry()).encode(), bytes(16)),
    ),
    "depth": ("50,000 lists in one another", lambda: packed(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}")),
    "depth_objects": (
        "50,000 objects in one another",
        lambda: packed(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    ),
    "bomb_brackets": ("15 million opening brackets", lambda: packed(b'{"a":' + b"[" * 15_000_000)),
    "bomb_braces": ("5 million empty objects", lambda: packed(b'{"a":[' + b"{}," * 5_000_000 + b"0]}")),
    "bomb_lists": ("5 million empty lists", lambda: packed(b'{"a":[' + b"[]," * 5_000_000 + b"0]}")),
    "bomb_commas": ("7 million numbers", lambda: packed(b'{"a":[' + b"1," * 7_000_000 + b"0]}")),
    "bomb_numbers": (
        "as many numbers as may be, each an object of its own",
        lambda: packed(b'{"a":[' + b",".join(b"%d" % (1000 + k % 9000) for k in range(1_990_000)) + b"]}"),
    ),
    "bomb_entries": (
        "as many short names as may be",
        lambda: packed(b"{" + b",".join(b'"%x":1' % k for k in range(1_600_000)) + b"}"),
    ),
    "bomb_emoji": (
        "a text of 15 MB whose one emoji makes it 60 MB",
        lambda: packed(("{" + f'"{EMOJI}{"a" * 15_000_000}":1' + "}").encode()),
    ),
    "bomb_escapes": ("a text of 2.6 million escapes", lambda: packed(b'{"' + rb"\u00e9" * 2_600_000 + b'":1}')),
    "big_integer": ("an integer of 4,000 digits in a shape", lambda: packed({"a": entry(shape=[10**4000])}, bytes(16))),
    "bigger_integer": (
        "an integer of a million digits, whose conversion is quadratic",
        lambda: packed(b'{"a":{"dtype":"F32","shape":[%b],"data_offsets":[0,4]}}' % (b"9" * 1_000_000), bytes(4)),
    ),
    "big_float": ("1e400 in a shape", lambda: packed(b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}')),
    "too_many_tensors": (
        "a million tensors",
        lambda: packed(b"{" + b",".join(b'"%x":{}' % k for k in range(1_000_000)) + b"}"),
    ),
    "zip": ("", bytes),  # written below
    "not_torch": ("a pickle that would run a program", lambda: pickle.dumps(_Runs()) + bytes(100)),
    "elf": ("a program", lambda: b"\x7fELF\x02\x01\x01" + bytes(200)),
    "web_page": ("an error page of a download", lambda: b"<!DOCTYPE html>\n<html>" + b" " * 200),
    "lfs_pointer": (
        "a git-lfs pointer",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n",
    ),
    "zeros": ("a megabyte of zeros", lambda: bytes(1 << 20)),
}
for number_name, value in {
    "nan": "NaN", "infinity": "Infinity", "minus_one": "-1", "fraction": "1.5", "true": "true", "null": "null",
    "text": '"4"', "list": "[4]",
}.items():  # fmt: skip
    for place, template in {
        "shape": '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}',
        "offset": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,%s]}}',
    }.items():
        LYING[f"{place}_{number_name}"] = (
            f"{value} in {'a shape' if place == 'shape' else 'the offsets'}",
            lambda text=template % value: packed(text.encode(), bytes(4)),
        )


class _Runs:
    """Shows itself if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("echo A PICKLE RAN >&2",)


LYING.pop("zip")
for label, (tries, data) in LYING.items():
    file_attack(label, tries, data)


@attack(DAMAGED)
def zip_with_pickle(folder: Path) -> Path:
    """A PyTorch checkpoint under the name of safetensors."""
    path = folder / "zip_with_pickle.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Runs()))
    return path


file_attack(
    "bomb_metadata",
    "10 MB of metadata in many entries",
    lambda: packed({"__metadata__": {f"{k:x}": EMOJI for k in range(600_000)}, "a": entry()}, bytes(16)),
    OK,
    MISMATCHED,
)
file_attack("no_tensors", "a header of no tensors", lambda: packed({}), OK, MISMATCHED)
file_attack(
    "empty_huge",
    "tensors of no bytes whose other sides are 2**47",
    lambda: packed({f"a{k}": entry(shape=[0, 2**47, 2**47], offsets=(0, 0)) for k in range(100)}),
    OK,
    MISMATCHED,
)
file_attack(
    "many_tensors",
    "as many tensors as may be, of no bytes",
    lambda: packed({f"{k}": entry(shape=[0], offsets=(0, 0)) for k in range(49_999)}),
    OK,
    MISMATCHED,
)
file_attack(
    "escapes_in_names",
    "names that would clear the screen, and print lines of their own",
    lambda: packed({f"{ESCAPES}{k}": entry(shape=[0], offsets=(0, 0)) for k in range(9)}),
    OK,
    MISMATCHED,
)
file_attack(
    "escapes_in_a_lora",
    "a LoRA whose modules' names would clear the screen",
    lambda: packed({f"{ESCAPES}{k}.lora_A.weight": entry(shape=[0, 4], offsets=(0, 0)) for k in range(9)}),
    OK,
    MISMATCHED,
)
for label, patterns in {
    "run_away": {"((((a{1,1000}){1,1000}){1,1000}){1,1000})x": 1},
    "many": {f"{'a?' * 60}{number}": 1 for number in range(50_000)},
    "nested": {"(" * 240 + "a" + "+)" * 240 + "b": 1},
}.items():
    file_attack(
        f"lora_patterns_{label}",
        "a LoRA whose settings hold regular expressions that take for ever",
        lambda patterns=patterns: packed(
            {f"transformer.{'a' * 60}{k}.lora_A.weight": entry(shape=[0, 4], offsets=(0, 0)) for k in range(100)}
            | {
                "__metadata__": {
                    "lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 1, "alpha_pattern": patterns})
                }
            }
        ),
        OK,
        MISMATCHED,
    )
file_attack(
    "escapes_in_duplicates",
    "an error about a name that would clear the screen",
    lambda: packed({ESCAPES: entry(dtype=ESCAPES)}, bytes(16)),
)
file_attack(
    "surrogates",
    "halves of characters in names, that cannot be printed",
    lambda: packed({f"\ud800{k}.lora_A": entry(shape=[0], offsets=(0, 0)) for k in range(4)}),
    OK,
    MISMATCHED,
)


# --- safetensors: a component -------------------------------------------------------------------

Tensors = dict[str, tuple[str, list[int], bytes]]  # name -> type, shape, data
NOTHING = ("F32", [0], b"")


def demo_tensors(component: str) -> Tensors:
    data = (DEMO_FOLDER / DEMO_FILES[component]).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors: Tensors = {}
    for name, e in header.items():
        first, last = e["data_offsets"]
        tensors[name] = e["dtype"], e["shape"], data[start + first : start + last]
    return tensors


def file_of(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = entry(shape, (at, at + len(data)), dtype)
        at += len(data)
    return packed(header, b"".join(data for _, _, data in tensors.values()))


def config_of(component: str) -> dict[str, Any]:
    return json.loads((DEMO_FOLDER / component / "config.json").read_text())


def component_attack(
    name: str,
    tries: str,
    tensors: Callable[[], Tensors],
    metadata: Callable[[], dict[str, str]] = dict,
    identified: str = OK,
    loaded: str = DAMAGED,
    component: str = "transformer",
) -> None:
    def write(folder: Path) -> Path:
        path = folder / f"{name}.safetensors"
        path.write_bytes(file_of(tensors(), metadata()))
        return path

    add(name, tries, write, identified, loaded, component)


def names_of(component: str) -> Tensors:
    """The demo's names and shapes, on no bytes."""
    return {name: ("F32", [0, *shape[1:]], b"") for name, (_, shape, _) in demo_tensors(component).items()}


def configured(component: str = "transformer", **changes: Any) -> Callable[[], dict[str, str]]:
    return lambda: {"config": json.dumps({component: config_of(component) | changes})}


def demo_of(component: str) -> Callable[[], Tensors]:
    return lambda: demo_tensors(component)


INSANE: dict[str, tuple[str, dict[str, Any]]] = {
    "width": ("transformer", {"dim": 2**40}),
    "width_of_gigabytes": ("transformer", {"dim": 2**33, "n_heads": 2**26}),
    "layers": ("transformer", {"n_layers": 10**9}),
    "layers_within_reason": ("transformer", {"n_layers": 200}),
    "layers_negative": ("transformer", {"n_layers": -1}),
    "layers_text": ("transformer", {"n_layers": "30"}),
    "layers_list": ("transformer", {"n_layers": [[30]]}),
    "layers_infinite": ("transformer", {"n_layers": float("inf")}),
    "layers_fraction": ("transformer", {"n_layers": 1e9}),
    "heads_none": ("transformer", {"n_heads": 0}),
    "text_width_escapes": ("transformer", {"cap_feat_dim": ESCAPES}),
    "text_width_list": ("transformer", {"cap_feat_dim": [1, {}]}),
    "text_width_huge": ("transformer", {"cap_feat_dim": 10**4000}),
    "positions": ("transformer", {"axes_lens": [2**40, 512, 512]}),
    "patches": ("transformer", {"all_patch_size": [2] * 100_000, "all_f_patch_size": [1] * 100_000}),
    "vocabulary": ("text_encoder", {"vocab_size": 2**50}),
    "text_layers": ("text_encoder", {"num_hidden_layers": 10**9}),
    "text_layer_types": ("text_encoder", {"layer_types": ["full_attention"] * 500_000}),
    "text_padding": ("text_encoder", {"pad_token_id": 2**40}),
    "text_heads": ("text_encoder", {"head_dim": 2**35}),
    "text_kernel": (
        "text_encoder",
        {"_attn_implementation": "someone/kernel", "attn_implementation": "someone/kernel"},
    ),
    "text_rope": ("text_encoder", {"rope_parameters": {"rope_type": ESCAPES, "rope_theta": "x"}}),
    "vae_widths": ("vae", {"block_out_channels": [2**40] * 4}),
    "vae_groups": ("vae", {"norm_num_groups": 0}),
    "vae_layers": ("vae", {"layers_per_block": 10**9}),
    "vae_blocks": ("vae", {"down_block_types": ["os.system"] * 4}),
    "vae_many_blocks": (
        "vae",
        {"down_block_types": ["DownEncoderBlock2D"] * 100_000, "block_out_channels": [32] * 100_000},
    ),
}
REFUSED = (DAMAGED, MISMATCHED)
for label, (part, changes) in INSANE.items():
    key, value = next(iter(changes.items()))
    component_attack(
        f"config_{label}",
        f"metadata that describe a {part.replace('_', ' ')} with {key} = {str(value)[:30]!r}"
        if label != "text_width_huge"
        else "a width of 4,000 digits",
        demo_of(part),
        configured(part, **changes),
        loaded="/".join(REFUSED),
        component=part,
    )

METADATA: dict[str, tuple[str, Callable[[], str]]] = {
    "no_json": ("that is no JSON", lambda: "{'dim': 3"),
    "nested": ("of 100,000 objects in one another", lambda: '{"a":' * 100_000),
    "bomb": ("of 2.5 million lists", lambda: '{"transformer":[' + "[]," * 2_500_000 + "0]}"),
    "keys": (
        "of half a million keys",
        lambda: json.dumps({"transformer": {f"{k:x}": 1 for k in range(500_000)}}),
    ),
    "list": ("whose transformer is a list", lambda: '{"transformer": [1, 2]}'),
    "huge_integer": ("with an integer of 100,000 digits", lambda: '{"transformer": {"dim": %s}}' % ("9" * 100_000)),
    "defaults": (
        "whose defaults are no numbers",
        lambda: json.dumps({"defaults": {"steps": ESCAPES}, "transformer": config_of("transformer")}),
    ),
    "scheduler": (
        "of a scheduler with a trillion steps",
        lambda: json.dumps({"scheduler": {"num_train_timesteps": 10**12}, "transformer": config_of("transformer")}),
    ),
    "scheduler_gigabytes": (
        "of a scheduler with tables of gigabytes",
        lambda: json.dumps({"scheduler": {"num_train_timesteps": 10**9}, "transformer": config_of("transformer")}),
    ),
    "scheduler_text": (
        "of a scheduler whose shift is a text",
        lambda: json.dumps({"scheduler": {"shift": "x" * 100}, "transformer": config_of("transformer")}),
    ),
}
for label, (tries, text) in METADATA.items():
    component_attack(
        f"config_json_{label}",
        f"metadata `config` {tries}",
        demo_of("transformer"),
        lambda text=text: {"config": text()},
        identified=DAMAGED if label in ("bomb",) else OK,
        loaded={"list": OK}.get(label, "/".join(REFUSED)),
    )
component_attack(
    "escapes_in_metadata",
    "metadata that would clear the screen, in every entry that is shown",
    lambda: names_of("transformer"),
    lambda: dict.fromkeys(("modelspec.title", "format", "general.name", "title"), f"turbo {ESCAPES}" * 9),
    loaded="/".join(REFUSED),
)
component_attack(
    "escapes_in_prefix",
    "a component below a prefix that would clear the screen",
    lambda: {f"{ESCAPES}.{name}": tensor for name, tensor in names_of("transformer").items()},
    loaded="/".join(REFUSED),
)
component_attack(
    "layer_number",
    "a layer with the number 999,999,999, so that the model seems to have a milliard",
    lambda: demo_tensors("transformer") | {"layers.999999999.attention.to_q.weight": NOTHING},
    loaded=DAMAGED,
)
component_attack(
    "layer_number_digits",
    "a layer with a number of 5,000 digits",
    lambda: demo_tensors("transformer") | {f"layers.{'9' * 5000}.attention.to_q.weight": NOTHING},
    loaded=MISMATCHED,
)
component_attack(
    "width_without_bytes",
    "tensors of no bytes that say the model is 2**40 wide",
    lambda: {
        name: ("F32", [0, 2**40] if len(shape) == 2 else [0], b"")
        for name, (_, shape, _) in demo_tensors("transformer").items()
    },
    loaded="/".join(REFUSED),
)
component_attack(
    "scalars",
    "a model whose tensors are all single numbers",
    lambda: {name: ("F32", [], bytes(4)) for name in demo_tensors("transformer")},
    loaded=MISMATCHED,
)
component_attack(
    "anchors",
    "10,000 prefixes, each with the beginning of every component",
    lambda: {
        f"{k}.{end}": NOTHING
        for k in range(6_000)
        for end in (
            "cap_embedder.1.weight",
            "layers.0.self_attn.q_proj.weight",
            "decoder.conv_in.weight",
            "control_layers.0.adaLN_modulation.0.weight",
            "blk.0.attn_q.weight",
            "time_caption_embed.caption_embedder.1.weight",
        )
    },
    identified=OK,
    loaded=MISMATCHED,
)
ALL_MARKS = (
    "cap_embedder.1.weight", "layers.0.adaLN_modulation.0.weight", "noise_refiner.0.attention.norm_q.weight",
    "control_layers.0.adaLN_modulation.0.weight", "control_layers.0.attention_norm1.weight",
    "layers.0.self_attn.q_proj.weight", "embed_tokens.weight", "norm.weight", "layers.0.self_attn.q_norm.weight",
    "decoder.conv_in.weight", "encoder.conv_in.weight", "decoder.conv_norm_out.weight",
    "decoder.mid_block.resnets.0.conv1.weight",
)  # fmt: skip
component_attack(
    "one_in_another",
    "eight times every component, each below the other's prefix, and 49,000 tensors below the last",
    lambda: (
        {f"{'a.' * depth}{mark}": NOTHING for depth in range(8) for mark in ALL_MARKS}
        | {f"{'a.' * 8}layers.{k}.attention.q_norm.weight": NOTHING for k in range(49_000)}
    ),
    identified=DAMAGED,
    loaded="/".join(REFUSED),
)
component_attack(
    "every_rename",
    "49,000 tensors of one component, with names that every rule for names applies to",
    lambda: (
        dict.fromkeys(ALL_MARKS, NOTHING)
        | {f"layers.{k}.attention.q_norm.feed_forward.w1.adaLN_modulation.1.weight": NOTHING for k in range(49_000)}
    ),
    identified=DAMAGED,
    loaded=DAMAGED,
)
for label, name in {
    "dots": "." * 1_900_000,
    "digits": "layers." + "1" * 1_900_000,
    "lora": "a" * 950_000 + ".lora_A" + ".lora_A" * 130_000,
    "blocks": "_blocks.1" * 210_000,
    "underscores": "lora_unet_" + "_to_out" * 270_000,
    "slashes": "^(a|a)*$" * 230_000,
}.items():
    file_attack(
        f"long_name_{label}",
        f"one name of 2 MB against the patterns: {name[:30]}...",
        lambda name=name: packed({name: entry(shape=[0], offsets=(0, 0)), "cap_embedder.1.weight": entry()}, bytes(16)),
        OK,
        MISMATCHED,
    )


@attack(OK, "/".join(REFUSED))
def terabyte(folder: Path) -> Path:
    """A sparse file whose one weight is a real terabyte long, to be read before its shape is looked at."""
    tensors = names_of("transformer")
    header: dict[str, Any] = {n: entry(shape, (0, 0), dtype) for n, (dtype, shape, _) in tensors.items()}
    header["layers.0.attention.to_q.weight"] = entry([2**19, 2**19], (0, 2**40))
    path = folder / "terabyte.safetensors"
    with open(path, "wb") as file:
        file.write(packed(header))
        file.truncate(file.tell() + 2**40)
    return path


# --- safetensors: quantised -----------------------------------------------------------------------

LAYER = "layers.0.attention.to_q"


def quantised(dtype: str, **companions: tuple[str, list[int], bytes]) -> Callable[[], Tensors]:
    """The demo's transformer, one of whose matrices is stored in `dtype`, with tensors beside it."""

    def tensors() -> Tensors:
        found = demo_tensors("transformer")
        shape = found[f"{LAYER}.weight"][1]
        found[f"{LAYER}.weight"] = dtype, shape, bytes(shape[0] * shape[1])
        return found | {f"{LAYER}.{name}": tensor for name, tensor in companions.items()}

    return tensors


def described(value: Any) -> tuple[str, list[int], bytes]:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return "U8", [len(text)], text


ONE = ("F32", [], struct.pack("<f", 1.0))
for label, quant in {
    "garbage": described(b"\xff\xfe\x00{"),
    "list": described([1, 2]),
    "nested": described(b'{"a":' * 100_000),
    "bomb": described(b'{"a":[' + b"[]," * 2_500_000 + b"0]}"),
    "group_0": described({"convrot": True, "convrot_groupsize": 0}),
    "group_3": described({"convrot": True, "convrot_groupsize": 3}),
    "group_huge": described({"convrot": True, "convrot_groupsize": 10**9}),
    "group_power": described({"convrot": True, "convrot_groupsize": 4**15}),
    "group_too_wide": described({"convrot": True, "convrot_groupsize": 4**5}),
    "group_text": described({"convrot": True, "convrot_groupsize": "x"}),
    "group_infinite": described(b'{"convrot": true, "convrot_groupsize": Infinity}'),
    "group_params": described({"params": {"convrot": 1, "convrot_groupsize": -4}}),
    "mxfp8": described({"format": "mxfp8"}),
    "format_list": described({"format": [], "convrot": [1], "convrot_groupsize": {}}),
    "floats": ("F32", [3], bytes(12)),
}.items():
    component_attack(
        f"comfy_quant_{label}",
        f"a marker of how a layer is quantised: {label}",
        quantised("I8", weight_scale=ONE, comfy_quant=quant),
        loaded="/".join(REFUSED),
    )
component_attack(
    "comfy_quant_megabytes",
    "a marker of 60 MB, of spaces",
    quantised("I8", weight_scale=ONE, comfy_quant=described(b" " * 60_000_000)),
    loaded="/".join(REFUSED),
)
for label, scale in {
    "wrong_number": ("F32", [7], bytes(28)),
    "empty": ("F32", [0], b""),
    "rank_9": ("F32", [1] * 9, bytes(4)),
    "megabytes": ("F32", [15_000_000], bytes(60_000_000)),
}.items():
    component_attack(
        f"scale_{label}",
        f"scales of another shape: {label}",
        quantised("F8_E4M3", weight_scale=scale),
        loaded=OK if label == "rank_9" else "/".join(REFUSED),
    )
for label, (scale, second) in {
    "wrong_number": (("F8_E4M3", [3, 5], bytes(15)), ONE),
    "missing": (ONE, ONE),
    "second_empty": (("F8_E4M3", [128, 16], bytes(2048)), ("F32", [0], b"")),
    "second_many": (("F8_E4M3", [128, 16], bytes(2048)), ("F32", [9], bytes(36))),
    "ints": (("I64", [128, 16], bytes(128 * 16 * 8)), ONE),
}.items():
    component_attack(
        f"nvfp4_{label}",
        f"4-bit weights with scales that do not fit: {label}",
        quantised("U8", weight_scale=scale, weight_scale_2=second),
        loaded="/".join(REFUSED),
    )
for label, text in {
    "list": lambda: '{"layers": [1]}',
    "nested": lambda: '{"layers":' * 100_000,
    "bomb": lambda: '{"layers":[' + "[]," * 2_500_000 + "0]}",
}.items():
    component_attack(
        f"quantization_metadata_{label}",
        f"metadata of how the layers are quantised: {label}",
        quantised("I8", weight_scale=ONE),
        lambda text=text: {"_quantization_metadata": text()},
        identified=DAMAGED if label == "bomb" else OK,
        loaded="/".join(REFUSED),
    )
component_attack(
    "unknown_bytes",
    "integers without any scale in place of weights",
    quantised("I8"),
    loaded="/".join(REFUSED),
)
for label, piece in {
    "garbage": ("U8", [1000], b"\x0a\xff" * 500),
    "empty": ("U8", [0], b""),
    "floats": ("BF16", [500], bytes(1000)),
    "huge_length": ("U8", [12], b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x00\x00"),
}.items():
    component_attack(
        f"tokenizer_piece_{label}",
        f"a SentencePiece model in the text encoder's file: {label}",
        lambda piece=piece: demo_tensors("text_encoder") | {"spiece_model": piece},
        component="text_encoder",
        loaded="/".join(REFUSED),
    )


# --- GGUF -----------------------------------------------------------------------------------------

U8, U32, TEXT, LIST = 0, 4, 8, 9


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def kv(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def list_of(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(name: str | bytes, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    entries: list[bytes] | bytes = b"",
    tensors: list[bytes] | bytes = b"",
    data: bytes = bytes(64),
    *,
    version: int = 3,
    counts: tuple[int | None, int | None] = (None, None),
    order: str = "<",
) -> bytes:
    """A GGUF file; `counts` (tensors, entries) lie."""
    listed = [entries] if isinstance(entries, bytes) and entries else list(entries)
    stored = [tensors] if isinstance(tensors, bytes) and tensors else list(tensors)
    numbers = [given if given is not None else len(own) for given, own in zip(counts, (stored, listed), strict=True)]
    head = b"GGUF" + struct.pack(f"{order}IQQ", version, *numbers) + b"".join(map(bytes, listed + stored))  # type: ignore[arg-type]
    return head + bytes(-len(head) % 32) + data


def sound_gguf() -> bytes:
    return gguf(kv("general.architecture", TEXT, text("lumina2")), tensor("a"), bytes(32))


GGUFS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "endless_array": (
        "49 bytes: a list of lists of lists without end",
        lambda: b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", LIST, LIST, 2**63 - 1),
    ),
    "list_of_numbers": ("a list of 2**61 numbers of 8 bytes", lambda: gguf(kv("a", LIST, list_of(10, 2**61)))),
    "list_of_texts": ("a list of 2**60 texts", lambda: gguf(kv("a", LIST, list_of(TEXT, 2**60)))),
    "list_of_nothing": ("a list of a type that there is not", lambda: gguf(kv("a", LIST, list_of(99, 4)))),
    "nested": ("lists in lists, 10,000 deep", lambda: gguf(kv("a", LIST, list_of(LIST, 1) * 10_000))),
    "nested_wide": (
        "64 lists of 64 lists of 64 numbers, 400 times: 100 million values",
        lambda: gguf(
            [
                kv(f"{k}", LIST, list_of(LIST, 64, list_of(LIST, 64, list_of(U8, 64, bytes(64)) * 64) * 64))
                for k in range(400)
            ]
        ),
    ),
    "words": (
        "8 vocabularies of 1.9 million empty words",
        lambda: gguf([kv(f"tokenizer.{k}", LIST, list_of(TEXT, 1_900_000, bytes(8 * 1_900_000))) for k in range(8)]),
    ),
    "tokens_lie": (
        "a vocabulary that claims three million words and has one",
        lambda: gguf(kv("tokenizer.ggml.tokens", LIST, list_of(TEXT, 3_000_000, text("a")))),
    ),
    "tokens_lie_small": (
        "a vocabulary that runs into what follows",
        lambda: gguf(kv("tokenizer.ggml.tokens", LIST, list_of(TEXT, 6, text("a"))), data=b"\xff" * 64),
    ),
    "text_length": ("a text of 2**63 bytes", lambda: gguf(kv("a", TEXT, text("b", 2**63)))),
    "text_length_wraps": ("a text of 2**64 - 1 bytes", lambda: gguf(kv("a", TEXT, text("b", 2**64 - 1)))),
    "text_beyond": ("a text longer than the file", lambda: gguf(kv("a", TEXT, text("b", 200)))),
    "texts_bomb": (
        "120 texts of 900 KB with an emoji each",
        lambda: gguf([kv(f"{k}", TEXT, text(EMOJI + "a" * 900_000)) for k in range(120)]),
    ),
    "entry_name": (
        "names of entries of a megabyte each",
        lambda: gguf([kv(EMOJI + f"{k}" + "a" * 1_000_000, U8, b"\x01") for k in range(100)]),
    ),
    "tensor_name": (
        "names of tensors of a megabyte",
        lambda: gguf(b"", [tensor("a" * 1_000_000 + f"{k}") for k in range(50)]),
    ),
    "tensor_count": ("2**63 tensors", lambda: gguf(counts=(2**63, 0))),
    "entry_count": ("2**63 entries", lambda: gguf(counts=(0, 2**63))),
    "tensors_missing": ("fifty thousand tensors that are not there", lambda: gguf(counts=(49_999, 0))),
    "entries_missing": ("ten thousand entries that are not there", lambda: gguf(counts=(0, 10_000))),
    "duplicate_entry": (
        "an entry twice: which one a reader sees depends on the reader",
        lambda: gguf([kv("general.alignment", U32, struct.pack("<I", n)) for n in (32, 64)], tensor("a")),
    ),
    "duplicate_tensor": ("a tensor twice", lambda: gguf(b"", [tensor("a"), tensor("a", offset=32)])),
    "alignment_0": ("an alignment of 0", lambda: gguf(kv("general.alignment", U32, struct.pack("<I", 0)), tensor("a"))),
    "alignment_3": ("an alignment of 3", lambda: gguf(kv("general.alignment", U32, struct.pack("<I", 3)), tensor("a"))),
    "alignment_huge": (
        "an alignment of 2**31",
        lambda: gguf(kv("general.alignment", U32, struct.pack("<I", 2**31)), tensor("a")),
    ),
    "alignment_text": (
        "an alignment that is a text",
        lambda: gguf(kv("general.alignment", TEXT, text("32")), tensor("a")),
    ),
    "alignment_true": ("an alignment that is true", lambda: gguf(kv("general.alignment", 7, b"\x01"), tensor("a"))),
    "alignment_list": (
        "an alignment that is a list",
        lambda: gguf(kv("general.alignment", LIST, list_of(U8, 1, b"\x20")), tensor("a")),
    ),
    "sides_overflow": ("a shape whose product is 0 in 64 bits", lambda: gguf(b"", tensor("a", (2**32, 2**32)))),
    "sides_wide": ("four sides of 2**63", lambda: gguf(b"", tensor("a", (2**63,) * 4))),
    "sides_nine": ("nine sides", lambda: gguf(b"", tensor("a", (1,) * 9))),
    "sides_milliards": (
        "2**32 - 1 sides",
        lambda: gguf(b"", text("a") + struct.pack("<I", 2**32 - 1)),
    ),
    "kind": ("a type that there is not", lambda: gguf(b"", tensor("a", kind=77))),
    "kind_removed": ("a type that was removed", lambda: gguf(b"", tensor("a", kind=4))),
    "entry_kind": ("an entry of a type that there is not", lambda: gguf(kv("a", 13, bytes(8)))),
    "block": ("a row that does not fill its blocks", lambda: gguf(b"", tensor("a", (31, 32), kind=2))),
    "overlap": ("two tensors over the same bytes", lambda: gguf(b"", [tensor("a"), tensor("b")])),
    "same_bytes": (
        "20,000 tensors that are the same bytes",
        lambda: gguf(b"", [tensor(f"{k}") for k in range(20_000)]),
    ),
    "unaligned": ("an offset that is not aligned", lambda: gguf(b"", tensor("a", offset=4))),
    "beyond": ("a tensor behind the end of the file", lambda: gguf(b"", tensor("a", offset=1 << 40))),
    "offset_wraps": (
        "an offset that is the file's beginning in 64 bits",
        lambda: gguf(b"", tensor("a", offset=2**64 - 32)),
    ),
    "version_0": ("version 0", lambda: gguf(b"", tensor("a"), version=0)),
    "version_1": ("version 1, whose lengths had 4 bytes", lambda: gguf(b"", tensor("a"), version=1)),
    "version_4": ("version 4", lambda: gguf(b"", tensor("a"), version=4)),
    "big_endian": ("big-endian numbers", lambda: gguf(b"", version=3, order=">")),
    "escapes": (
        "an error about a tensor whose name would clear the screen",
        lambda: gguf(b"", tensor(ESCAPES, kind=77)),
    ),
    "escapes_in_entry": (
        "an error about an entry whose name would clear the screen",
        lambda: gguf(kv(ESCAPES, 13, b"")),
    ),
}
for label, (tries, data) in GGUFS.items():
    file_attack(f"gguf_{label}", tries, data)
for cut in range(4, len(sound_gguf()) - 16, 5):  # the last 16 bytes are padding
    file_attack(
        f"gguf_truncated_at_{cut}", f"a valid file that ends after {cut} bytes", lambda cut=cut: sound_gguf()[:cut]
    )
file_attack(
    "gguf_invalid_utf8",
    "bytes that are no text in names and values",
    lambda: gguf(kv(b"general.name\xff", TEXT, text(b"\xff\xfe\x1b[2J")), tensor(b"\xff\xfe"), bytes(32)),
    OK,
    MISMATCHED,
)
file_attack(
    "gguf_escapes_in_values",
    "texts and names that would clear the screen",
    lambda: gguf(
        [kv(name, TEXT, text(ESCAPES)) for name in ("general.name", "general.architecture", "general.license")],
        [tensor(f"{ESCAPES}{k}", offset=32 * k) for k in range(2)],
    ),
    OK,
    MISMATCHED,
)
file_attack(
    "gguf_short_lists",
    "10,000 entries of lists of 64 numbers",
    lambda: gguf([kv(f"{k}", LIST, list_of(U8, 64, bytes(64))) for k in range(10_000)]),
    OK,
    MISMATCHED,
)
file_attack(
    "gguf_text_bomb",
    "a text of 100 MB whose one emoji makes it 400 MB",
    lambda: gguf(kv("a", TEXT, text(EMOJI + "a" * 100_000_000))),
    OK,
    MISMATCHED,
)
file_attack(
    "gguf_many_tensors",
    "as many tensors as may be, of no values",
    lambda: gguf(b"", [tensor(f"{k}", (0,)) for k in range(49_999)]),
    OK,
    MISMATCHED,
)


def gguf_text_encoder(folder: Path, name: str, entries: list[bytes]) -> Path:
    """The demo's text encoder as GGUF, with a vocabulary of our own making."""
    stored, at, parts = [], 0, []
    for own, (dtype, shape, data) in demo_tensors("text_encoder").items():
        kind = {"F32": 0, "F16": 1, "BF16": 30}[dtype]
        stored.append(tensor(own, tuple(shape[::-1]), kind, at))
        parts.append(data + bytes(-len(data) % 32))
        at += len(parts[-1])
    config = kv("config", TEXT, text(json.dumps({"text_encoder": config_of("text_encoder")})))
    path = folder / f"{name}.gguf"
    path.write_bytes(gguf([kv("general.architecture", TEXT, text("qwen3")), config, *entries], stored, b"".join(parts)))
    return path


WORDS = [b"a", b"b", EMOJI.encode()]
for label, entries in {
    "empty": lambda: [kv("tokenizer.ggml.tokens", LIST, list_of(TEXT, 0))],
    "number": lambda: [kv("tokenizer.ggml.tokens", U8, b"\x01")],
    "no_model": lambda: [kv("tokenizer.ggml.tokens", LIST, list_of(TEXT, 3, b"".join(map(text, WORDS))))],
    "model_escapes": lambda: [
        kv("tokenizer.ggml.model", TEXT, text(ESCAPES)),
        kv("tokenizer.ggml.tokens", LIST, list_of(TEXT, 3, b"".join(map(text, WORDS)))),
    ],
    "merges_garbage": lambda: [
        kv("tokenizer.ggml.model", TEXT, text("gpt2")),
        kv("tokenizer.ggml.tokens", LIST, list_of(TEXT, 3, b"".join(map(text, WORDS)))),
        kv("tokenizer.ggml.merges", LIST, list_of(TEXT, 2, text("a") + text("a b c d"))),
        kv("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 2**32 - 1)),
    ],
}.items():
    add(
        f"gguf_tokenizer_{label}",
        f"a vocabulary inside a GGUF file: {label}",
        lambda folder, label=label, entries=entries: gguf_text_encoder(folder, f"tokenizer_{label}", entries()),
        OK,
        "/".join(REFUSED),
        "text_encoder",
    )


# --- folders --------------------------------------------------------------------------------------


def demo_folder(folder: Path, name: str) -> Path:
    """The demo's folder, its weights as links, as in the cache of a hub."""
    target = folder / name
    for file in DEMO_FOLDER.rglob("*"):
        if file.is_file():
            place = target / file.relative_to(DEMO_FOLDER)
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".safetensors":
                place.symlink_to(file)
            else:
                shutil.copyfile(file, place)
    return target


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def folder_attack(
    name: str, tries: str, damage: Callable[[Path], object], identified: str = DAMAGED, loaded: str = ""
) -> None:
    def write(folder: Path) -> Path:
        target = demo_folder(folder, name)
        damage(target)
        return target

    add(name, tries, write, identified, loaded, "")


def sharded(target: Path, names: list[str]) -> None:
    (target / DEMO_FILES["transformer"]).unlink()
    index = {"weight_map": {f"a{k}": name for k, name in enumerate(names)}}
    (target / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def replaced(target: Path, name: str, make: Callable[[Path], object]) -> None:
    path = target / name
    path.unlink() if path.is_file() else shutil.rmtree(path)
    make(path)


def sparse(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.write(b'{"_class_name": "ZImagePipeline"')
        file.truncate(size)


TRANSFORMER = DEMO_FILES["transformer"]
folder_attack(
    "linked_weights",
    "no attack: links to weights elsewhere are how hub caches keep models and how people spread them over disks. A "
    "link is a file that the user's machine has, whoever reads it. What a folder's own text may not do is to name a "
    "path outside of it (shard_*, component_*)",
    lambda target: None,
    OK,
)


@attack(OK, component="")
def linked_folder(folder: Path) -> Path:
    """No attack either: a component that is a link to a folder on another disk."""
    target = demo_folder(folder, "linked_folder")
    (target / "vae").rename(folder / "elsewhere")
    (target / "vae").symlink_to(folder / "elsewhere")
    return target


for label, names in {
    "dots": ["../vae/diffusion_pytorch_model.safetensors"],
    "dots_and_name": ["../vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"],
    "below": ["sub/diffusion_pytorch_model.safetensors"],
    "backslash": ["..\\vae\\diffusion_pytorch_model.safetensors"],
    "absolute": [str(DEMO_FOLDER / DEMO_FILES["vae"])],
    "zero_device": ["/dev/zero"],
    "zero_byte": ["a\0b.safetensors"],
    "dot": ["."],
    "dot_dot": [".."],
    "empty": [""],
    "pickle": ["diffusion_pytorch_model.bin"],
    "long": ["a" * 5000 + ".safetensors"],
    "escapes": [ESCAPES],
    "two_thousand": [f"{k}.safetensors" for k in range(2_000)],
}.items():

    def shards(target: Path, label: str = label, names: list[str] = names) -> None:
        if label in ("below", "pickle"):
            place = target / "transformer" / names[0]
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(target / DEMO_FILES["vae"], place)
        if label == "dots_and_name":
            shutil.copyfile(target / DEMO_FILES["vae"], target / "transformer/0.safetensors")
            names = [names[0], "0.safetensors"]
        if label == "two_thousand":
            for name in names:
                (target / "transformer" / name).symlink_to(target / DEMO_FILES["vae"])
        sharded(target, names)

    folder_attack(f"shard_{label}", f"an index that names the shard {names[0][:40]!r}", shards, "/".join(REFUSED))

folder_attack(
    "shards_many_link",
    "an index that says one thing of many tensors, and another of one",
    lambda target: (
        sharded(target, ["x.safetensors"] * 2),
        (target / "transformer/x.safetensors").symlink_to("x.safetensors"),
    ),
    "/".join(REFUSED),
)
for label, make in {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "zero_device": lambda path: path.symlink_to("/dev/zero"),
    "empty": lambda path: path.write_bytes(b""),
    "pickle_only": lambda path: path.with_suffix(".bin").write_bytes(pickle.dumps(_Runs())),
}.items():
    folder_attack(
        f"weights_{label}",
        f"in place of the weights: {label}",
        lambda target, make=make: replaced(target, TRANSFORMER, make),
        "/".join(REFUSED),
    )
    if label != "pickle_only":
        folder_attack(
            f"index_{label}",
            f"in place of model_index.json: {label}",
            lambda target, make=make: replaced(target, "model_index.json", make),
            "/".join((*REFUSED, MISSING)),
        )
        folder_attack(
            f"settings_{label}",
            f"in place of the transformer's config.json: {label}",
            lambda target, make=make: replaced(target, "transformer/config.json", make),
            "/".join(REFUSED),
        )

INDEX: dict[str, tuple[str, Callable[[Path], object]]] = {
    "huge": ("of 200 MB", lambda path: sparse(path, 200_000_000)),
    "nested": ("of 100,000 lists in one another", lambda path: path.write_text('{"a":' + "[" * 100_000)),
    "bomb": ("of 4 million lists", lambda path: path.write_text('{"a":[' + "[]," * 4_000_000 + "0]}")),
    "integer": ("with an integer of a million digits", lambda path: path.write_text('{"a":' + "9" * 1_000_000 + "}")),
    "utf16": ("in UTF-16", lambda path: path.write_text("{}", encoding="utf-16")),
    "list": ("that is a list", lambda path: path.write_text("[]")),
    "class_list": ("whose pipeline is a list", lambda path: edited(path, _class_name=["ZImagePipeline"])),
    "class_other": ("whose pipeline is no pipeline", lambda path: edited(path, _class_name="__builtins__")),
    "system": ("whose vae is os.system", lambda path: edited(path, vae=["os", "system"])),
    "builtins": ("whose vae is diffusers.__builtins__", lambda path: edited(path, vae=["diffusers", "__builtins__"])),
    "subprocess": (
        "whose vae is a function of a module of diffusers",
        lambda path: edited(path, vae=["diffusers.utils.dynamic_modules_utils", "get_class_from_dynamic_module"]),
    ),
    "function": ("whose vae is a function", lambda path: edited(path, vae=["transformers", "pipeline"])),
    "automatic": ("whose vae is whatever its files say", lambda path: edited(path, vae=["transformers", "AutoModel"])),
    "pipeline": ("whose vae is a whole pipeline", lambda path: edited(path, vae=["diffusers", "DiffusionPipeline"])),
    "dunder": ("whose vae is a path", lambda path: edited(path, vae=["diffusers", "__path__"])),
    "enumeration": (
        "whose vae is an enumeration",
        lambda path: edited(path, vae=["diffusers", "KarrasDiffusionSchedulers"]),
    ),
    "custom": (
        "whose transformer is code that comes along",
        lambda path: edited(path, transformer=["my_model", "Model"]),
    ),
    "custom_scheduler": ("whose scheduler is os", lambda path: edited(path, scheduler=["os", "Scheduler"])),
    "scheduler_function": (
        "whose scheduler is a function",
        lambda path: edited(path, scheduler=["diffusers", "get_scheduler"]),
    ),
    "scheduler_model": (
        "whose scheduler is another",
        lambda path: edited(path, scheduler=["diffusers", "DDPMParallelScheduler"]),
    ),
    "tokenizer_function": (
        "whose tokenizer is a function",
        lambda path: edited(path, tokenizer=["transformers", "pipeline"]),
    ),
    "tokenizer_model": (
        "whose tokenizer is a model",
        lambda path: edited(path, tokenizer=["transformers", "AutoModelForCausalLM"]),
    ),
    "numbers": ("whose vae is two numbers", lambda path: edited(path, vae=[1, 2])),
    "many": (
        "of 100,000 components",
        lambda path: edited(path, **{f"c{k}": ["diffusers", "AutoencoderKL"] for k in range(100_000)}),
    ),
}
for label, (tries, damage) in INDEX.items():
    folder_attack(
        f"index_{label}",
        f"a model_index.json {tries}",
        lambda target, damage=damage: damage(target / "model_index.json"),
        {
            **dict.fromkeys(("system", "builtins", "subprocess", "function", "automatic", "pipeline", "dunder"), OK),
            **dict.fromkeys(("custom", "class_other", "numbers", "custom_scheduler", "scheduler_model"), OK),
            **dict.fromkeys(("tokenizer_function", "tokenizer_model"), OK),
        }.get(label, "/".join(REFUSED)),
        "/".join(REFUSED),
    )
for label, name in {
    "dots": "../elsewhere",
    "absolute": str(DEMO_FOLDER / "vae"),
    "separator": "vae/../vae",
    "dot": ".",
    "zero_byte": "v\0e",
    "escapes": ESCAPES,
}.items():

    def component(target: Path, name: str = name) -> None:
        shutil.copytree(target / "vae", target.parent / "elsewhere")
        edited(target / "model_index.json", **{name: ["diffusers", "AutoencoderKL"]})

    folder_attack(f"component_{label}", f"a component of the name {name[:40]!r}", component, "/".join(REFUSED))

CONFIGS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "layers": ("transformer", "a milliard layers", {"n_layers": 10**9}, OK),
    "layers_list": ("transformer", "layers that are a list", {"n_layers": [30, {}]}, OK),
    "width": ("transformer", "a width of 2**40", {"dim": 2**40}, OK),
    "positions": ("transformer", "a position table of 2**40", {"axes_lens": [2**40] * 3}, OK),
    "text_width": ("transformer", "a text width that is a list", {"cap_feat_dim": [[]]}, OK),
    "kind": ("text_encoder", "a kind that is a list", {"model_type": [ESCAPES]}, OK),
    "kind_escapes": ("text_encoder", "a kind that would clear the screen", {"model_type": ESCAPES}, OK),
    "class_list": ("vae", "a class that is a list", {"_class_name": ["AutoencoderKL"]}, OK),
    "code": (
        "text_encoder",
        "a class that comes along as code",
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "trust_remote_code": True},
        OK,
    ),
    "kernel": (
        "text_encoder",
        "an attention that is downloaded and run",
        {"_attn_implementation": "someone/kernel", "attn_implementation": "someone/kernel"},
        OK,
    ),
    "quantizer": (
        "transformer",
        "a quantiser that is not here",
        {"quantization_config": {"quant_method": ESCAPES}},
        OK,
    ),
    "scheduler": ("scheduler", "a trillion steps", {"num_train_timesteps": 10**12}, OK),
    "scheduler_text": ("scheduler", "a shift that is a text", {"shift": "x"}, OK),
    "tokenizer_code": (
        "tokenizer",
        "a tokenizer that comes along as code",
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Evil", "trust_remote_code": True},
        OK,
    ),
    "tokenizer_class": ("tokenizer", "a tokenizer of a class that is none", {"tokenizer_class": "pipeline"}, OK),
    "scaling": ("vae", "a scale that is a text", {"scaling_factor": "x"}, OK),
    "scaling_null": ("vae", "a scale that is null", {"scaling_factor": None}, OK),
    "shift": ("vae", "a shift that is a list", {"shift_factor": [0.1]}, OK),
    "groups": ("vae", "norms of -1 groups", {"norm_num_groups": -1}, OK),
    "short_positions": ("transformer", "position tables of one place", {"axes_lens": [1, 1, 1]}, OK),
    "flat_positions": ("transformer", "one position table", {"axes_lens": 1}, OK),
    "theta": ("transformer", "a rotation that is a text", {"rope_theta": "x"}, OK),
    "scheduler_null": ("scheduler", "a shift that is null", {"base_shift": None}, OK),
    "vae_channels": ("vae", "channels that are NaN", {"latent_channels": float("nan")}, OK),
}
FILES = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
for label, (part, tries, changes, identified) in CONFIGS.items():

    def configure(target: Path, part: str = part, changes: dict[str, Any] = changes) -> None:
        edited(target / part / FILES.get(part, "config.json"), **changes)
        evil = f"import os\nos.system('echo CODE RAN >&2; touch {target}/ran')\n"
        (target / part / "evil.py").write_text(evil)

    # What is not asked for is not read: that it asks to be run makes no model worse.
    loaded = OK if label in ("class_list", "code", "tokenizer_class", "tokenizer_code") else "/".join(REFUSED)
    folder_attack(f"settings_{label}", f"a {part} with {tries}", configure, identified, loaded)
folder_attack(
    "vocabulary",
    "a tokenizer.json that is no tokenizer",
    lambda target: (target / "tokenizer/tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": [1]}}'),
    OK,
    DAMAGED,
)
folder_attack(
    "preferences",
    "preferences that are texts",
    lambda target: (target / "candela.json").write_text(json.dumps({"defaults": [1, 2]})),
    DAMAGED,
)


# --- tokenizers and templates ---------------------------------------------------------------------

for label, (tries, changes) in TOKENIZERS.items():
    folder_attack(
        f"tokenizer_{label}",
        f"a tokenizer.json with {tries}",
        lambda target, changes=changes: edited(target / "tokenizer/tokenizer.json", **changes),
        OK,
        DAMAGED,
    )


def far_tokens(target: Path) -> None:
    path = target / "tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {word: index + 500 for word, index in content["model"]["vocab"].items()}
    path.write_text(json.dumps(content))


folder_attack("tokenizer_far", "tokens that the text encoder does not have", far_tokens, OK, MISMATCHED)
folder_attack(
    "tokenizer_huge",
    "a tokenizer.json of 200 MB",
    lambda target: sparse(target / "tokenizer/tokenizer.json", 200_000_000),
    OK,
    DAMAGED,
)
folder_attack(
    "tokenizer_pipe",
    "a pipe beside the tokenizer's files",
    lambda target: os.mkfifo(target / "tokenizer/added_tokens.json"),
    OK,
    DAMAGED,
)
folder_attack(
    "tokenizer_length",
    "a length of a tokenizer's texts that is a text",
    lambda target: edited(target / "tokenizer/tokenizer_config.json", model_max_length="x"),
    OK,
    DAMAGED,
)
for label, template in TEMPLATES.items():
    folder_attack(
        f"template_{label}",
        f"a chat template that {label}",
        lambda target, template=template: (target / "tokenizer/chat_template.jinja").write_text(template),
        OK,
        DAMAGED,
    )
folder_attack(
    "template_missing",
    "no chat template",
    lambda target: (target / "tokenizer/chat_template.jinja").unlink(),
    OK,
    MISMATCHED,
)


def written(attack: Attack, folder: Path) -> Path:
    """Writes it into a folder of its own, below `folder`."""
    own = folder / attack.name
    own.mkdir(parents=True)
    return attack.write(own)


def main(arguments: list[str]) -> int:
    if not arguments or (unknown := [name for name in arguments[1:] if name not in ATTACKS]):
        print(f"usage: python -m tests.attacks.files FOLDER [NAME...]; names: {', '.join(ATTACKS)}", file=sys.stderr)
        print(f"unknown: {', '.join(unknown)}" if arguments else "", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    for name in arguments[1:] or ATTACKS:
        attack = ATTACKS[name]
        path = written(attack, folder)
        print(f"{path}\n    {' '.join(attack.tries.split())} -> {attack.identified}; loaded: {attack.loaded}")
        print(f"    --model {model_of(attack, path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
