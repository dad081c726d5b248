# ruff: noqa: E501, RUF001  # patterns as they were published
"""Patterns of tokenizers: all published ones pass, and what could take for ever does not."""

from __future__ import annotations

import contextlib

import pytest

from candela.checkpoints.patterns import check_pattern

O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
    "qwen3.5": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
    "jais2": r"\p{N}{1,3}|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{8}(?!\S)|\s{1,2}(?!\S)|\s{1}",
    "gpt-4o": O200K,
    "tekken": O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", ""),
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt-2, shorter": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "clip": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "clip's spaces": r"\s+",
    "deepseek": "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?"
    "[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    "deepseek's letters": "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ]+",
    "deepseek's ideographs": "[一-龥぀-ゟ゠-ヿ]+",
    "deepseek's end": r"\s+$",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "glm-4": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
    "bailing": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s",
    "aya": r"\d{1,3}(?=(?:\d{3})*\b)",
    "superbpe": r"(?=(\d{3})+(?!\d))",
    "falcon": r"[\p{P}\$\+<=>\^~\|`]+",
    "falcon's digits": "[0-9][0-9][0-9]",
    "chameleon": r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    "laguna": r"[^\n]+|[\n]+",
    "kimi": r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}"
    r"]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
    "t5's spaces": " {2,}",
    "quotes": "``|''",
    "llama's spaces": "▁",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_pattern_passes(name):
    if name in ("cl100k", "chameleon"):
        with pytest.raises(ValueError, match="repeat"):
            check_pattern(PUBLISHED[name])
    else:
        check_pattern(PUBLISHED[name])


# Beside each, a text on which it takes long: `test_and_takes_long` runs them.
ENDLESS = {
    r"(a+)+[bd]": "a" * 40 + "c",
    r"(?:a|a)*[bd]": "a" * 40 + "c",
    r"(?:a|aa)+[bd]": "a" * 60 + "c",
    r"(?:\w+\s?)*[!d]": "a" * 60 + "c",
    r"(?:(?:\w){1,50}){1,50}[!-]": "a" * 60,
    r"\w*\w*[^\w\W]": "a" * 3000,
    r"\w*(?:\w*)[^\w\W]": "a" * 3000,
    r"\w{0,5000}\w{0,5000}[^\w\W]": "a" * 3000,
    r"\w+(?=\w+[^\w\W])": "a" * 3000,
    "a?" * 30 + "a" * 30 + "[bd]": "a" * 30 + "c",
    "(?:a|a)" * 30 + "[bd]": "a" * 30 + "c",
    "(?x: # [ \n (a+)+[bd] # ] \n)": "a" * 40 + "c",
    r"(a+)\1+[bd]": "a" * 3000 + "c",
    r"(?<n>a|b\g<n>c)": "",
    r"(?~a)": "",
    r"(?(1)a|b)": "",
    r"(?#[)(a+)+[bd](?#])": "a" * 40 + "c",
    r"a**": "",
    r"a{2}{3}{4}": "",
    r"\w{1,3}+[^\w\W]": "a" * 60,
    r"*": "",
    r"(": "",
    r")": "",
    r"a\c[b]": "",
    "((((((((((((a))))))))))))": "",
    "a" * 5000: "",
    r"a{1000000}": "",
}


@pytest.mark.parametrize("pattern", ENDLESS, ids=range(len(ENDLESS)))
def test_an_endless_one_is_refused(pattern):
    with pytest.raises(ValueError, match=r"it|two|one"):
        check_pattern(pattern)


def test_deciding_takes_no_time():
    """A hang would be a failure."""
    for pattern in (
        "[" * 4000,
        "(" * 4000,
        "a|" * 2000,
        "[a" * 1000 + "]" * 1000,
        "\\" * 3999,
        "a?" * 2000,
        "{1" * 2000,
    ):
        with contextlib.suppress(ValueError):
            check_pattern(pattern)
