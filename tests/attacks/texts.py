"""Hostile tokenizers, templates and records: what is text, or JSON. `files.py` puts the first two into folders."""

from __future__ import annotations

import base64
import io
import json
import struct
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\rcandela: all is well\n"  # terminal's and bidirectional controls

# --- tokenizers -------------------------------------------------------------------------------------

PANICS = {"type": "Split", "pattern": {"Regex": "(\\w+\\s?)+[^\\w\\W]"}, "behavior": "Isolated", "invert": False}
CREEPS = PANICS | {"pattern": {"Regex": "\\w*\\w*[^\\w\\W]"}}
DOUBLES = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
SPECIAL = {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}
FRAME = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": []}


def replaced_text(by: str, pattern: dict[str, str]) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": by}


def charsmap() -> str:
    """A table whose one text is a megabyte long, behind a trie of nothing."""
    return base64.b64encode(struct.pack("<I", 4) + bytes(4) + b"a" * 1_000_000 + b"\0").decode()


# What is changed in the demo's tokenizer.json.
TOKENIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "panics": ("a pattern that Oniguruma gives up, with a panic", {"pre_tokenizer": PANICS}),
    "creeps": ("a pattern that takes the square of a square of the time", {"pre_tokenizer": CREEPS}),
    "compiles": (
        "a pattern that is large once compiled",
        {"pre_tokenizer": PANICS | {"pattern": {"Regex": "(((a{99999}){99999}){9})"}}},
    ),
    "hidden_pattern": (
        "a pattern in a decoder, which none runs",
        {"decoder": {"type": "Replace", "pattern": PANICS["pattern"], "content": ""}},
    ),
    "pattern_in_normalizer": (
        "a pattern that panics, in its normalizer",
        {"normalizer": replaced_text("", PANICS["pattern"])},
    ),
    "doubles": ("letters doubled 34 times", {"normalizer": {"type": "Sequence", "normalizers": [DOUBLES] * 34}}),
    "long_text": (
        "a gigabyte in place of each letter",
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    replaced_text("b" * 30_000, {"String": "a"}),
                    replaced_text("c" * 30_000, {"String": "b"}),
                ],
            }
        },
    ),
    "anywhere": (
        "a text between all letters, again and again",
        {"normalizer": {"type": "Sequence", "normalizers": [replaced_text("a" * 100, {"Regex": ""})] * 6}},
    ),
    "prepends": ("a million letters before a text", {"normalizer": {"type": "Prepend", "prepend": "a" * 1_000_000}}),
    "charsmap": (
        "a table that makes a letter a megabyte",
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap()}},
    ),
    "charsmap_text": ("a table that is none", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "x"}}),
    "normalizers_deep": (
        "normalizers in normalizers",
        {"normalizer": json.loads('{"type":"Sequence","normalizers":[' * 90 + '{"type":"NFC"}' + "]}" * 90)},
    ),
    "normalizers_many": (
        "a hundred thousand normalizers",
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100_000}},
    ),
    "normalizer_unknown": ("a normalizer of no kind", {"normalizer": {"type": ESCAPES}}),
    "normalizer_list": ("a normalizer that is a list", {"normalizer": [1]}),
    "frame": (
        "a text a hundred thousand times over",
        {"post_processor": FRAME | {"single": FRAME["single"] * 100_000, "special_tokens": {}}},
    ),
    "frame_ids": (
        "a special token of a million",
        {
            "post_processor": FRAME
            | {
                "single": [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
                "special_tokens": {
                    "<|im_end|>": SPECIAL | {"ids": [2] * 1_000_000, "tokens": ["<|im_end|>"] * 1_000_000}
                },
            }
        },
    ),
    "pads": (
        "every text padded to a milliard tokens",
        {
            "padding": {
                "strategy": {"Fixed": 10**9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "a",
            }
        },
    ),
}

TEMPLATES = {
    "escapes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "system": "{{ cycler.__init__.__globals__.os.system('touch ran; echo RAN') }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "writes": "{% for a in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}",
    "multiplies": "{{ 'a' * 10**11 }}",
    "powers": "{{ 10 ** 10 ** 10 }}",
    "doubles": "{% set x = messages[0].content %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "recurses": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "is_none": "{{ 1 + }}",
    "raises": "{{ raise_exception('x\n' ~ messages[0].content) }}",
    "divides": "{{ messages[0].content - 1 }}",
}

# --- records --------------------------------------------------------------------------------------

RECORD: dict[str, Any] = {
    "model": "demo", "family": "z-image", "prompt": "a red star", "negative_prompt": None, "width": 96, "height": 96,
    "steps": 1, "guidance": 0.0, "cfg": 1.0, "seed": 3, "strength": 1.0, "dtype": "float32", "device": "cpu",
    "mode": "exact", "start": None, "loras": [], "remake": True, "fingerprint": "", "versions": {"candela": "0.1.0"},
}  # fmt: skip
LORA = {"name": "a.safetensors", "strength": 1.0, "sha256": "00"}


def recorded(**changes: Any) -> str:
    return json.dumps(RECORD | changes)


# What stands in a stranger's PNG, none of which is a record.
RECORDS: dict[str, str] = {
    "no_json": "{",
    "list": "[]",
    "number": "5",
    "empty": "{}",
    "lists": "[" * 100_000,
    "objects": '{"a":' * 100_000,
    "deep_inside": json.dumps(RECORD)[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "digits": json.dumps(RECORD).replace('"seed": 3', '"seed": ' + "9" * 100_000),
    "versions_number": recorded(versions=3),
    "versions_list": recorded(versions=["candela"]),
    "versions_nested": recorded(versions={"candela": {"a": 1}}),
    "mode": recorded(mode=5),
    "mode_null": recorded(mode=None),
    "start_path": recorded(start={"path": 5, "sha256": "00"}),
    "start_list": recorded(start=[1]),
    "start_text": recorded(start="s.png"),
    "start_empty": recorded(start={}),
    "start_digest": recorded(start={"name": "s.png", "sha256": None}),
    "loras_text": recorded(loras="a.safetensors"),
    "loras_object": recorded(loras=LORA),
    "lora_list": recorded(loras=[[]]),
    "lora_strength": recorded(loras=[LORA | {"strength": "x"}]),
    "lora_infinite": recorded(loras=[LORA | {"strength": float("inf")}]),
    "lora_nothing": recorded(loras=[{}]),
    "prompt_list": recorded(prompt=["a"]),
    "prompt_half_a_character": recorded(prompt="\ud800"),
    "model_null": recorded(model=None),
    "model_object": recorded(model={"transformer": "demo"}),
    "width_text": recorded(width="96"),
    "width_true": recorded(width=True),
    "width_fraction": recorded(width=96.5),
    "seed_negative": recorded(seed=-1),
    "seed_huge": recorded(seed=2**64),
    "guidance_nan": recorded(guidance=float("nan")),
    "guidance_list": recorded(guidance=[]),
    "remake_text": recorded(remake="no"),
    "negative_number": recorded(negative_prompt=3),
    "escapes_in_a_number": recorded(steps=ESCAPES),
}


def picture_with(record: str, key: str = "candela") -> bytes:
    """A PNG that carries `record`, well or ill formed."""
    info = PngInfo()
    info.add_itxt(key, record)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
