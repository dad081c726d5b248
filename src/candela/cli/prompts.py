"""`--prompts FILE`: one prompt per line, in the encodings that editors and shells write."""

from __future__ import annotations

import codecs
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from candela.errors import InvalidRequest
from candela.regular import open_regular

STDIN = "-"
MAX_BYTES = 4_000_000  # tens of thousands of prompts
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # the first is what `>` of Windows PowerShell writes


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, or of standard input for `-`, without the empty ones. UTF-8, or UTF-16 where its mark
    says so; other encodings do not say what they are.

    Raises:
        InvalidRequest: it cannot be read, is longer than MAX_BYTES, or in another encoding: where, and how to
            convert it.
    """
    name = "standard input" if str(path) == STDIN else f"the prompts file {path}"
    try:
        if str(path) == STDIN:
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open_regular(path) as file:
                data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # a zero byte in the name
        raise InvalidRequest(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise InvalidRequest(f"{name} is longer than {MAX_BYTES} bytes: split it")
    return [line.strip() for line in _text(data, name, path).splitlines() if line.strip()]


def check_typed(texts: Iterable[str]) -> None:
    """
    Raises:
        InvalidRequest: bytes of the command line that are no characters in the encoding of this terminal.
    """
    for text in texts:
        if wrong := next((character for character in text if 0xDC80 <= ord(character) <= 0xDCFF), None):
            raise InvalidRequest(
                f"the prompt {text!r} has the byte 0x{ord(wrong) - 0xDC00:02X}, which is no character in "
                f"{sys.getfilesystemencoding()}, this terminal's encoding. Set LC_ALL=C.UTF-8, or put the prompt into "
                "a file in UTF-8: --prompts FILE"
            )


def _text(data: bytes, name: str, path: Path) -> str:
    wide = data.startswith(UTF_16)
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if wide:
            raise InvalidRequest(
                f"{name} begins as UTF-16 and is none: {error.reason} at byte {error.start}"
            ) from error
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        wrong = data[error.start : error.start + 1]
        meant = wrong.decode("cp1252", errors="ignore")
        raise InvalidRequest(
            f"{name} is not UTF-8: line {line}, byte {column} is 0x{wrong.hex().upper()}"
            f"{f', which is {meant!r} in Windows-1252' if meant else ''}. If that is its encoding: {_conversion(path)}"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InvalidRequest(
            f"{name} has a zero byte in line {line}: it is no text, or UTF-16 without a mark. Save it as UTF-8"
        )
    return text


def _conversion(path: Path) -> str:
    source = "prompts.txt" if str(path) == STDIN else str(path)
    target = os.path.splitext(source)[0] + "-utf8.txt"
    if os.name == "nt":
        return f'PowerShell: Get-Content "{source}" -Encoding Default | Set-Content "{target}" -Encoding utf8'
    return f"iconv -f WINDOWS-1252 -t UTF-8 {shlex.quote(source)} > {shlex.quote(target)}"
