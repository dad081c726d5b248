"""`candela models`: what is usable on this machine, where and since when checked, and what could be."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from candela.checkpoints import CATALOGUE, Model, installed
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
    here += [_unusable(entry) for entry in manifest.models if entry.model not in {model.name for model in usable}]
    absent = [e for e in CATALOGUE.values() if e.repository and e.name not in {one.model for one in here}]
    if as_json:
        known = [{"model": entry.name, "summary": entry.summary} for entry in absent]
        print_json({"models": [asdict(one) for one in here], "known": known})
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
    place = ", ".join(model.parts.values()) or str(model.folder)
    try:
        checkpoint = read_model(model)
        family = family_of(checkpoint)
        default = family.defaults(checkpoint)
    except CheckpointError as error:
        return Here(model.name, "", 0, "", place, files, checked, str(error))
    picture = f"{default.width}x{default.height}, {default.steps} steps"
    return Here(model.name, family.name, checkpoint.bytes, picture, place, files, checked, "")


def _unusable(entry: Installed) -> Here:
    """Installed, and not all there; or no model by itself, as a preview decoder is none."""
    component = entry.whole and not entry.parts and not CATALOGUE.get(entry.model)
    what = "" if component else f"it is not whole. Go on with: candela install {entry.model}"
    return Here(entry.model, "", 0, "", entry.folder or entry.root, entry.files, "", what)


def _print(here: list[Here]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "family", "size", "picture", "checked", "where"):
        table.add_column(column, overflow="fold")
    for one in here:
        if not one.problem:
            table.add_row(*map(plain, (one.model, one.family, size(one.bytes), one.picture, one.checked[:10] or "-",
                                       one.folder)))  # fmt: skip
    console = Console()
    console.print(table, markup=False)
    for one in here:
        if one.problem:
            console.print(f"\ncannot be used: {plain(f'{one.model}: {one.problem}')}", highlight=False, markup=False)
