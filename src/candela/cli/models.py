"""`candela models`: what is usable on this machine, and what is here but broken."""

from __future__ import annotations

from candela.checkpoints import CATALOGUE, installed, read_folder
from candela.cli.output import plain
from candela.errors import CheckpointError
from candela.families import family_of


def run() -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "family", "size", "picture", "folder"):
        table.add_column(column, overflow="fold")
    broken = []
    here = installed()
    for model in here:
        try:
            checkpoint = read_folder(model.folder)
            family = family_of(checkpoint)
            default = family.defaults(checkpoint)
        except CheckpointError as error:
            broken.append(f"{model.name}: {error}")
            continue
        picture = f"{default.width}x{default.height}, {default.steps} steps"
        size = checkpoint.bytes / 1e6
        table.add_row(
            model.name,
            family.name,
            f"{size:.1f} MB" if size < 1000 else f"{size / 1000:.1f} GB",
            picture,
            str(model.folder),
        )
    console = Console()
    console.print(table)
    for message in broken:
        console.print(f"\ncannot be used: {plain(message)}", highlight=False, markup=False)
    absent = [e for e in CATALOGUE.values() if e.repository and e.name not in {m.name for m in here}]
    if absent:
        console.print("\n[bold]known, not here[/] (download with the command shown):")
        for entry in absent:
            console.print(f"  {entry.name:16} hf download {entry.repository}  ({entry.summary})", highlight=False)
    return 0
