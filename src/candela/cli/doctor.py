"""`candela doctor`: one screen that can be pasted into a mail."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from candela.cli.output import plain, print_json
from candela.install.doctor import FAILED, Line, examine

WIDTH = 16


def run(comfyui: Path | None, as_json: bool) -> int:
    """-> 0 when nothing failed, 1 otherwise; warnings are no failures."""
    lines = []
    for line in examine(comfyui):
        lines.append(line)
        if not as_json:  # at once: the next one may take seconds
            print("\n".join(_shown(line)), flush=True)
    failed = sum(line.state == FAILED for line in lines)
    if as_json:
        print_json({"ok": not failed, "lines": [asdict(line) for line in lines]})
    else:
        print(f"\n{f'{failed} of {len(lines)} failed' if failed else 'Nothing failed'}.")
    return 1 if failed else 0


def _shown(line: Line) -> Iterable[str]:
    yield f"{line.state:8} {plain(line.name):{WIDTH}} {plain(line.text)}"
    if line.remedy:
        yield f"{'':8} {'':{WIDTH}} -> {plain(line.remedy)}"
