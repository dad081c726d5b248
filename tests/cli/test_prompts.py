"""Files of prompts as editors and shells write them."""

from __future__ import annotations

import codecs
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from candela.cli.main import app
from candela.cli.prompts import read_prompts
from candela.errors import InvalidRequest

LINES = ["a café, 猫, \N{PARTY POPPER}", "a red star"]
TEXT = "\r\n".join(["", *LINES, "  ", ""])


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode(),
    ],
    ids=["PowerShell", "UTF-16 BE", "UTF-8 with BOM", "UTF-8"],
)
def test_encodings_that_say_what_they_are(tmp_path, data):
    (tmp_path / "prompts.txt").write_bytes(data)
    assert read_prompts(tmp_path / "prompts.txt") == LINES


@pytest.mark.skipif(sys.platform == "win32", reason="iconv")
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_another_encoding_is_told_with_the_command_that_converts_it(tmp_path, encoding):
    file = tmp_path / "a class's prompts.txt"
    file.write_bytes("a red star\na blue caf\xe9\n".encode(encoding))
    with pytest.raises(InvalidRequest) as refused:
        read_prompts(file)
    said, command = str(refused.value).split(". If that is its encoding: ")
    assert said == f"the prompts file {file} is not UTF-8: line 2, byte 11 is 0xE9, which is '\xe9' in Windows-1252"
    subprocess.run(command, shell=True, check=True)
    assert read_prompts(tmp_path / "a class's prompts-utf8.txt") == ["a red star", "a blue caf\xe9"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a star".encode("utf-16-le"), "has a zero byte in line 1: it is no text, or UTF-16 without a mark"),
        (codecs.BOM_UTF16_LE + b"abc", "begins as UTF-16 and is none: truncated data at byte 4"),
        (b"\x81", "line 1, byte 1 is 0x81. If that is its encoding"),
    ],
)
def test_what_is_no_text(tmp_path, data, message):
    (tmp_path / "prompts.txt").write_bytes(data)
    with pytest.raises(InvalidRequest, match=message):
        read_prompts(tmp_path / "prompts.txt")


def test_standard_input(tmp_path):
    done = CliRunner().invoke(
        app,
        ["generate", "--prompts", "-", "--steps", "1", "--out", str(tmp_path)],
        input="a red star\n\na blue circle\n",
    )
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-blue-circle-1.png", "a-red-star-0.png"]
    none = CliRunner().invoke(app, ["generate", "--prompts", "-", "--out", str(tmp_path)], input="")
    assert none.exit_code == 2
    assert "no prompt" in none.stderr
