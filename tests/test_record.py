"""A record in a stranger's PNG: read whole or refused in a sentence, and never a path that is opened or told."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from candela import OutputError, read_record
from candela.record import Lora, Record, Start, file_name_of, names_of, png_bytes
from tests.attacks.texts import RECORD, RECORDS, picture_with


@pytest.mark.parametrize("name", RECORDS)
def test_a_hostile_record_is_refused_in_a_sentence(name, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(picture_with(RECORDS[name]))
    with pytest.raises(OutputError, match="its Candela record is damaged: ") as caught:
        read_record(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable() and len(message) < 600


def test_what_was_written_is_read_again(tmp_path):
    record = Record(**RECORD | {"start": Start("s.png", "12"), "loras": (Lora("a.safetensors", -0.5, "34"),)})
    (tmp_path / "a.png").write_bytes(png_bytes(Image.new("RGB", (16, 16)), record))
    assert read_record(tmp_path / "a.png") == record


def test_a_later_candela_may_say_more_and_an_earlier_one_less(tmp_path):
    values = {name: value for name, value in RECORD.items() if name not in ("fingerprint", "loras", "mode")}
    (tmp_path / "a.png").write_bytes(picture_with(json.dumps(values | {"mood": [5]})))
    assert read_record(tmp_path / "a.png").mode == "exact"


def test_paths_of_earlier_records_become_names(tmp_path):
    values = RECORD | {
        "model": "transformer=/home/ann/z.gguf,vae=\\\\evil\\share\\ae.safetensors,text_encoder=demo",
        "start": {"path": "/home/ann/photo.png", "sha256": "12"},
        "loras": [{"path": "C:\\Users\\ann\\a.safetensors", "strength": 1, "sha256": "34"}],
    }
    (tmp_path / "a.png").write_bytes(picture_with(json.dumps(values)))
    record = read_record(tmp_path / "a.png")
    assert record.model == "transformer=z.gguf,vae=ae.safetensors,text_encoder=demo"
    assert record.start and record.start.name == "photo.png" and record.loras[0].name == "a.safetensors"
    assert "ann" not in record.to_json() and "evil" not in record.to_json()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("demo", "demo"),
        ("Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image"),
        ("../evil", "evil"),
        ("/home/ann/models/mine/", "mine"),
        ("\\\\evil\\share", "share"),
        ("transformer=/a/z.gguf,vae=//evil/v", "transformer=z.gguf,vae=v"),
    ],
)
def test_a_model_is_recorded_by_name(model, names):
    assert names_of(model) == names


def test_names_have_no_separators():
    assert [file_name_of(path) for path in ("a/b", "a\\b/", "\\\\h\\s\\f", "/", "")] == ["b", "b", "f", "", ""]


def test_a_record_behind_the_pixels_is_found_and_none_in_another_format(tmp_path):
    data = picture_with(json.dumps(RECORD))
    text, pixels = data.index(b"iTXt") - 4, data.index(b"IDAT") - 4  # each begins with its length
    (tmp_path / "a.png").write_bytes(data[:text] + data[pixels:-12] + data[text:pixels] + data[-12:])
    assert read_record(tmp_path / "a.png").prompt == RECORD["prompt"]
    Image.new("RGB", (16, 16)).save(tmp_path / "b.jpg")
    with pytest.raises(OutputError, match="not of a format that is read: PNG"):
        read_record(tmp_path / "b.jpg")
