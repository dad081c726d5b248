"""`candela verify`: are installed files still what was published?"""

from __future__ import annotations

import sys
from pathlib import Path

from candela.cli.output import plain, size
from candela.install.verifying import CHANGED, DAMAGED, MISSING, OK, UNFINISHED, UNREADABLE, installed_of, verify

SAID = {
    OK: "ok",
    MISSING: "missing: put it back with",
    DAMAGED: "damaged, its checksum is another: fetch it again with",
    CHANGED: "another file now, written after it was installed: to have the published one again, move it away and use",
    UNFINISHED: "not whole yet: go on with",
    UNREADABLE: "cannot be read: check who may read it, and the disk; then",
}


def run(model: str | None) -> int:
    """-> exit code: 1 if a file is not what was published."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    models = installed_of(model)
    if not models:
        print("nothing was installed by Candela, so there is nothing to compare")
        return 0
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        console=console, transient=True, redirect_stdout=sys.stdout.isatty(),
        disable=not console.is_terminal,
    )  # fmt: skip
    bad = 0
    with bars:
        tasks = {}

        def report(path: Path, number: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(plain(path.name), total=path.stat().st_size)
            bars.advance(tasks[path], number)

        for verdict in verify(models, report):
            bad += verdict.state != OK
            remedy = "" if verdict.state == OK else f" candela install {verdict.model}"
            line = f"{SAID[verdict.state]}{remedy}"
            print(plain(f"{verdict.path}  {size(verdict.bytes)}  {line}"), flush=True)
    return 1 if bad else 0
