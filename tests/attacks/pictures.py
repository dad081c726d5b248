"""Pictures for `fuzz.py`: PNGs that carry records, and what `--init` reads. Each format has seeds, words that mean
something in it, a repair of what would hide a mutation, and a target; records are also changed value by value."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import re
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.attacks.texts import LORA, RECORDS, picture_with, recorded

SHARED = Path("/dev/shm")  # in memory, where there is such a thing
PNG = b"\x89PNG\r\n\x1a\n"


SOUND = [
    recorded(),
    recorded(start={"name": "s.png", "sha256": "00"}, loras=[LORA, LORA | {"name": "b"}], mode="fast int8"),
    recorded(model="transformer=a.gguf,text_encoder=b/c,vae=demo", start={"path": "/a/b.png", "sha256": "00"}),
]


def record_seeds() -> list[bytes]:
    small = [text for text in RECORDS.values() if len(text) < 2000]
    return [picture_with(text) for text in (*SOUND, *small)]


def picture_seeds() -> list[bytes]:
    noise = Image.frombytes("RGB", (24, 16), random.Random(0).randbytes(24 * 16 * 3))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    info = PngInfo()
    info.add_text("a", "b", zip=True)
    info.add_itxt("c", "d", zip=True)
    saved = [
        *[("PNG", noise.convert(mode), {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
        ("PNG", noise, {"exif": exif, "pnginfo": info, "icc_profile": bytes(200), "dpi": (72, 72)}),
        ("PNG", noise.quantize(4), {"transparency": b"\x00\x80\xff"}),
        ("PNG", noise, {"save_all": True, "append_images": [noise.rotate(180)]}),
        ("JPEG", noise, {"exif": exif, "comment": "a"}),
        ("JPEG", noise, {"progressive": True, "subsampling": 0, "restart_marker_blocks": 1}),
        ("JPEG", noise.convert("CMYK"), {}),
        ("JPEG", noise.convert("L"), {"optimize": True}),
        ("WEBP", noise, {"exif": exif}),
        ("WEBP", noise.convert("RGBA"), {"lossless": True}),
        ("WEBP", noise, {"save_all": True, "append_images": [noise.rotate(180)]}),
    ]
    seeds = []
    for form, image, options in saved:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        seeds.append(buffer.getvalue())
    return seeds


SEEDS = {"record": record_seeds, "picture": picture_seeds}
WORDS = {
    "record": [
        b"[", b"]", b"{", b"}", b",", b":", b'"', b"-1", b"1e999", b"NaN", b"null", b"true", b"5", b"9" * 30,
        b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"\\ud800", b"\\u0000", b"\xff", b"../", b"\\\\a\\b", b"/dev/zero",
        b'"start"', b'"path"', b'"loras"', b'"mode"', b'"versions"', b'"strength"', b"iTXt", b"zTXt", b"tEXt", b"IDAT",
        b"candela\0", b"\0", b"\1",
    ],
    "picture": [
        b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\x20\0", b"\0\1\0\0", b"\xff\xd8", b"\xff\xd9",
        b"\xff\xda", b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xdb", b"\xff\xdd", b"\xff\xe1", b"\xff\xd0", b"IHDR",
        b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"gAMA",
        b"cHRM", b"sRGB", b"pHYs", b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"ICCP", b"RIFF",
        b"Exif\0\0", b"II*\0", b"MM\0*", b"\x12\x01", b"MPF\0",
    ],
}  # fmt: skip


ODD: list[Any] = [
    None, True, False, -1, 0, 5, 96, 0.5, -0.0, 1e300, float("inf"), float("nan"), 2**64, 10**400, "", "a", "../x",
    "C:\\x", "\\\\h\\s", "/dev/zero", "a\0b", "\x1b[2J", "\U0001f600" * 100, "\ud800", "demo", "a/b",
    "transformer=demo,vae=", "=,=", "fast int8", "fast", "exact",
    [], [[]], [LORA] * 100, {}, {"path": 5}, {"name": "a", "sha256": "00"}, LORA,
]  # fmt: skip


def changed(chance: random.Random) -> bytes:
    """A record with a few values that do not belong there, at any depth."""
    record: Any = json.loads(chance.choice(SOUND))
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = record
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = chance.choice(keys) if keys else None
            inner = place[key] if keys else None
            if not isinstance(inner, (dict, list)) or not inner or chance.random() < 0.3:
                break
            place = inner
        if key is None:
            continue
        if chance.random() < 0.1:
            del place[key]
        else:
            place[key] = copy.deepcopy(chance.choice(ODD))
    return picture_with(json.dumps(record))


def repaired(data: bytes, chance: random.Random) -> bytes:
    """Most mutations with checksums, and for some with lengths, that fit again: else PIL looks no further."""
    if data[:8] != PNG:
        if data[:4] == b"RIFF" and chance.random() < 0.8:
            return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
        return data
    if chance.random() < 0.2:
        return data
    whole, at = bytearray(PNG), 8
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I", data[at : at + 4])[0], data[at + 4 : at + 8]
        following = re.compile(rb"[A-Za-z]{4}").match(data, at + length + 16)
        if following is None and (found := re.compile(rb"(?<=....)(IDAT|IEND|iTXt)", re.DOTALL).search(data, at + 12)):
            length = found.start() - 16 - at  # a mutation inside made it longer or shorter
        content = data[at + 8 : at + 8 + max(0, length)]
        whole += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        at += 12 + max(0, length)
    return bytes(whole)


def target(form: str) -> Callable[[bytes], None]:
    """What is fuzzed. Only CandelaError may come out of it."""
    from candela.cli.generate import Options, fast_mode, read_start, request_settings
    from candela.cli.loras import wanted_loras
    from candela.cli.main import app  # noqa: F401  # as a user's command has it
    from candela.cli.remaking import recorded_model, remakeable
    from candela.engine import Request
    from candela.errors import CandelaError
    from candela.record import Record, file_name, pixels_sha256, png_bytes, read_record

    folder = Path(tempfile.mkdtemp(dir=SHARED if SHARED.is_dir() else None))
    os.chdir(folder)  # nothing that a record may name is here
    path, blank = folder / "a.png", Image.new("RGB", (16, 16))
    options = Options(
        (), None, None, None, None, None, None, None, None, 1, None, None, (), None, path, folder / "out", False
    )

    def record(data: bytes) -> None:
        path.write_bytes(data)
        steps: list[Callable[[], object]] = [lambda: remakeable(path)]
        with contextlib.suppress(CandelaError):
            found = read_record(path)
            assert Record.from_json(found.to_json()) == found
            steps += [
                lambda: Request(**request_settings(options, found)),
                lambda: fast_mode(None, found),
                lambda: recorded_model(found, path),
                lambda: wanted_loras((), found, path),
            ]
            file_name(found), png_bytes(blank, found)
        for step in steps:
            try:
                step()
            except CandelaError as error:
                if len(str(error)) > 5000:
                    raise AssertionError("a message as long as a book") from error

    def picture(data: bytes) -> None:
        path.write_bytes(data)
        try:
            image = read_start(path)
        except CandelaError as error:
            if len(str(error)) > 1000:
                raise AssertionError("a message as long as a book") from error
            return
        pixels_sha256(image)
        Request("a", image=image)
        image.convert("RGB").resize((32, 32))

    return {"record": record, "picture": picture}[form]
