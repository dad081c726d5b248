"""What the files of a stranger's tokenizer may say. The library does as they say, in Rust, where nothing can stop it:
it repeats texts within texts, pads them, and searches with their patterns. So they are read first."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from candela.checkpoints.headers import json_text
from candela.checkpoints.headers.header import open_regular, reading
from candela.checkpoints.patterns import check_pattern
from candela.errors import DamagedFile

LARGEST = 64_000_000  # bytes of one file; Gemma 3's tokenizer.json has 33 MB
MAX_VALUES = 4_000_000  # in it; Gemma's has 1.4 million where pairs of merges are lists
MAX_GROWTH = 1000  # times that a normalizer may make a text longer; T5's could make it 36 times as long
MAX_STAGES, DEEPEST = 100, 8  # of normalizers and the like, in one another
MAX_PIECES = 32  # of what a template puts around a text
MAX_PADDING = 2**16  # tokens

# How many characters one becomes at most, for normalizers that say nothing of it themselves.
GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 2, "BertNormalizer": 3, "ByteLevel": 4, "Nmt": 1,
          "Strip": 1, "StripAccents": 1}  # fmt: skip
PRE_TOKENIZERS = ("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace",
                  "Punctuation", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit")  # fmt: skip
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")  # of a text encoder, which may lie in the same folder
STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_files(folder: Path) -> None:
    """Of a tokenizer's folder, before the library reads it.

    Raises:
        DamagedFile: a file that is none, is too large, or would have the library do what no published one does.
    """
    for file in folder.iterdir():
        if file.suffix.lower() in WEIGHTS:
            continue
        with reading(file):
            status = file.stat()
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise DamagedFile(f"{file} is not a regular file. Download it again")
        if stat.S_ISREG(status.st_mode) and status.st_size > LARGEST:
            raise DamagedFile(
                f"{file} has {status.st_size} bytes; no tokenizer's file has more than {LARGEST}. Download it again"
            )
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    try:
        with open_regular(file) as opened:
            size = os.fstat(opened.fileno()).st_size  # a number given to `read` is taken of memory at once
            content = json_text.parse(opened.read(min(size, LARGEST)), most=MAX_VALUES)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        _check(content)
        padding = content.get("padding")
        if isinstance(padding, dict):
            for number in (padding.get("strategy"), padding.get("pad_to_multiple_of")):
                number = number.get("Fixed") if isinstance(number, dict) else number
                if isinstance(number, int) and number > MAX_PADDING:
                    raise ValueError(f"it pads every text to {number} tokens; {MAX_PADDING} are the most")
    except (OSError, ValueError) as error:
        raise DamagedFile(f"{file} cannot be used: {str(error)[:300]}. Download it again") from error


def check_built(tokenizer: Any, path: Path) -> None:
    """What the library has made of other files: SentencePiece, tiktoken, GGUF.

    Raises:
        DamagedFile: as `check_files`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    made = {name: getattr(backend, name, None) for name in STAGES}
    try:
        _check({name: json.loads(stage.__getstate__()) for name, stage in made.items() if stage is not None})
    except ValueError as error:
        raise DamagedFile(f"{path}: its tokenizer cannot be used: {str(error)[:300]}. Download it again") from error


def _check(content: dict[str, Any]) -> None:
    for name in STAGES:
        stage = content.get(name)
        if stage is None:
            continue
        for pattern in _patterns(stage):
            try:
                check_pattern(pattern)
            except ValueError as error:
                raise ValueError(f"the pattern {pattern[:60]!r} of its {name} might run for ever: {error}") from None
    growth = 1
    for stage in _stages(content.get("normalizer"), "normalizer"):
        growth *= _growth(stage)
        if growth > MAX_GROWTH:
            raise ValueError(f"its normalizer makes a text more than {MAX_GROWTH} times as long")
    for stage in _stages(content.get("pre_tokenizer"), "pre_tokenizer"):
        if stage["type"] not in PRE_TOKENIZERS:
            raise ValueError(f"its pre_tokenizer is a {str(stage['type'])[:60]!r}, which is not known")
    for stage in _stages(content.get("post_processor"), "post_processor"):
        tokens = stage.get("special_tokens")
        groups = [stage.get("single"), stage.get("pair"), tokens]
        groups += (
            [one.get("ids") for one in tokens.values() if isinstance(one, dict)] if isinstance(tokens, dict) else []
        )
        if any(len(group) > MAX_PIECES for group in groups if isinstance(group, (list, dict, str))):
            raise ValueError(f"its post_processor puts more than {MAX_PIECES} pieces around a text")


def _stages(stage: Any, kind: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The stages below a Sequence, in their order."""
    if stage is None:
        return
    if not isinstance(stage, dict) or not isinstance(stage.get("type"), str) or depth > DEEPEST:
        raise ValueError(f"its {kind} is not of the form that is known")
    if stage["type"] != "Sequence":
        yield stage
        return
    inner = next((stage[key] for key in ("normalizers", "pretokenizers", "processors") if key in stage), None)
    if not isinstance(inner, list) or len(inner) > MAX_STAGES:
        raise ValueError(f"its {kind} is not of the form that is known, or has more than {MAX_STAGES} stages")
    below = itertools.chain.from_iterable(_stages(each, kind, depth + 1) for each in inner)
    for number, each in enumerate(below):
        if number >= MAX_STAGES:
            raise ValueError(f"its {kind} has more than {MAX_STAGES} stages")
        yield each


def _growth(stage: dict[str, Any]) -> int:
    kind = stage["type"]
    if kind == "Replace":
        pattern, content = stage.get("pattern"), stage.get("content")
        if not isinstance(content, str) or not isinstance(pattern, dict):
            raise ValueError("its normalizer replaces what is no text")
        text = pattern.get("String")
        return max(1, -(-len(content) // len(text))) if isinstance(text, str) and text else 1 + len(content)
    if kind == "Prepend":
        return 1 + len(str(stage.get("prepend"))) // 10  # once for each text, or piece of one
    if kind == "Precompiled":
        try:
            table = base64.b64decode(stage.get("precompiled_charsmap") or "", validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise ValueError("its normalizer has a table that is not in base64") from None
        # Behind the trie, what is put in place of characters, each up to a zero byte.
        texts = table[4 + int.from_bytes(table[:4], "little") :]
        return max((len(text) for text in texts.split(b"\0")), default=1) or 1
    if kind not in GROWTH:
        raise ValueError(f"its normalizer is a {kind[:60]!r}, which is not known")
    return GROWTH[kind]


def _patterns(value: Any, depth: int = 0) -> Iterator[str]:
    if depth > 2 * DEEPEST:
        raise ValueError("it is nested too deep")
    if isinstance(value, dict):
        if isinstance(value.get("Regex"), str):
            yield value["Regex"]
        for inner in value.values():
            yield from _patterns(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _patterns(inner, depth + 1)
