"""`candela models`: what is usable on this machine, where and since when checked, and what could be."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from candela.checkpoints import CATALOGUE, Model, installed
from candela.checkpoints.catalogue import PREVIEW_DECODER
from candela.checkpoints.manifest import Installed, Manifest, read_manifest
from candela.checkpoints.opening import read_model
from candela.cli.output import plain, print_json, size
from candela.errors import CheckpointError
from candela.families import family_of


@dataclass(frozen=True)
class Here:
    """One model on this machine. `checked`: when all of its checksums had been compared, in UTC, the oldest of them;
    empty for what Candela did not install. `problem`: why it cannot be used, empty if it can."""

    model: str
    family: str
    bytes: int
    picture: str
    folder: str
    files: tuple[str, ...]
    checked: str
    problem: str


def run(as_json: bool) -> int:
    manifest = read_manifest()
    usable = installed()
    here = [_here(model, manifest) for model in usable]
    here += [_no_model(entry, manifest) for entry in manifest.models if entry.model not in {m.name for m in usable}]
    known = [*CATALOGUE.values(), PREVIEW_DECODER]
    absent = [e for e in known if e.repository and e.name not in {one.model for one in here}]
    if as_json:
        others = [{"model": entry.name, "summary": entry.summary} for entry in absent]
        print_json({"models": [asdict(one) for one in here], "known": others})
        return 0
    _print(here)
    if absent:
        print("\nknown, not here (candela install NAME):")
        for entry in absent:
            print(f"  {entry.name:16} {entry.summary}")
    return 0


def _here(model: Model, manifest: Manifest) -> Here:
    entry = next((e for e in reversed(manifest.models) if e.model == model.name and e.whole), None)
    files = entry.files if entry and entry.folder in ("", str(model.folder)) else ()
    checked = min((manifest.files[file].checked for file in files), default="")
    place = entry.root if entry and model.parts else str(model.folder)
    try:
        checkpoint = read_model(model)
        family = family_of(checkpoint)
        default = family.defaults(checkpoint)
    except CheckpointError as error:
        return Here(model.name, "", 0, "", place, files, checked, str(error))
    picture = f"{default.width}x{default.height}, {default.steps} steps"
    return Here(model.name, family.name, checkpoint.bytes, picture, place, files, checked, "")


def _no_model(entry: Installed, manifest: Manifest) -> Here:
    """Installed, and not all there any more, or not yet; or no model by itself."""
    sizes = [os.path.getsize(file) for file in entry.files if os.path.isfile(file)]
    whole = entry.whole and len(sizes) == len(entry.files)
    problem = "" if whole else f"it is not whole. Go on with: candela install {entry.model}"
    checked = min((manifest.files[file].checked for file in entry.files), default="")
    return Here(entry.model, "", sum(sizes), "", entry.folder or entry.root, entry.files, checked, problem)


def _print(here: list[Here]) -> None:
    """A model on one line, and where it lies on the next: paths are there to be copied."""
    usable = [one for one in here if not one.problem]
    rows = [("model", "family", "size", "picture", "verified (UTC)")]
    rows += [(one.model, one.family or "-", size(one.bytes), one.picture or "-", _day(one)) for one in usable]
    widths = [max(len(plain(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row, place in zip(rows, ["", *(one.folder for one in usable)]):
        print("  ".join(plain(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())
        if place:
            print(plain(f"    {place}"))
    for one in here:
        if one.problem:
            print(plain(f"\ncannot be used: {one.model}: {one.problem}", lines=True))


def _day(one: Here) -> str:
    return one.checked.replace("T", " ").removesuffix(":00Z").rstrip("Z")[:16] if one.checked else "-"
