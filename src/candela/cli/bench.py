"""`candela bench`: Candela beside the bare diffusers pipeline, and ComfyUI's own nodes, in one run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from candela.cli.libraries import import_libraries
from candela.cli.output import print_json, say
from candela.errors import InvalidRequest, OutputError

RUNS = {"quick": 21, "cpu": 7, "gpu": 7}
SIDES = ("diffusers", "comfyui")  # that Candela can stand beside; diffusers always does
RESULTS = Path("benchmarks/results")


def run(suite: str, against: str, as_json: bool) -> int:
    """
    Raises:
        InvalidRequest: an unknown suite or other side; the gpu suite without a GPU; ComfyUI beside another suite, or
            without COMFYUI_DIR.
        OutputError: the results cannot be written.
    """
    if suite not in RUNS:
        raise InvalidRequest(f"there is no suite {suite!r}: use {', '.join(RUNS)}")
    sides = [side.strip() for side in against.split(",")]
    if unknown := [side for side in sides if side not in SIDES]:
        raise InvalidRequest(f"there is no side {unknown[0]!r}: use {', '.join(SIDES)}")
    if "comfyui" in sides and suite != "gpu":
        raise InvalidRequest(
            f"ComfyUI's native Z-Image comes in its full size only, so it cannot stand beside the {suite} suite: add "
            "--suite gpu, on a machine with a GPU"
        )

    import_libraries()
    import torch

    from candela.bench import comfyui, report, suites
    from candela.cli.generate import quiet_libraries
    from candela.engine.heap import own_process

    own_process()
    quiet_libraries()
    if suite == "gpu" and not torch.cuda.is_available():
        sizes = ", ".join(f"{side}x{side}" for side in suites.SIDES)
        raise InvalidRequest(
            "the gpu suite needs an NVIDIA GPU with about 40 GB of memory, and there is none here. It would make "
            f"Z-Image in full size with random weights on the card (20.5 GB), and measure at {sizes}, 8 steps, in "
            "exact and fast mode beside diffusers, eager and compiled: seconds, peak memory, how far the pictures are "
            "apart, and the fraction of the card's measured matrix product rate that was reached"
        )
    options = {}
    if "comfyui" in sides:
        comfyui.checkout()  # told before anything is made
        options = {"others": comfyui.native}
    with writing(), tempfile.TemporaryFile(dir=RESULTS):  # told before minutes are spent
        pass
    device = torch.device("cuda" if suite == "gpu" else "cpu")
    cases = []
    for case in getattr(suites, suite)(RUNS[suite], **options):
        cases.append(case)
        if not as_json:
            show(case)
    results: dict[str, Any] = report.as_json(suite, cases, device)
    title = f"{suite} suite on {results['device']}: time as a multiple of that of {cases[0].reference}"
    written = write(suite, results, report.chart(title, cases))
    if as_json:
        print_json(results)
    say(f"written: {', '.join(map(str, written))}")
    return 0


def show(case: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from candela.bench import report

    table = Table(title=case.title, title_justify="left", box=None)
    for heading in ("", "median", "quartiles", "ratio", "peak", "apart", "of matmul rate"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in report.rows(case):
        table.add_row(*row)
    Console().print(table)


@contextmanager
def writing() -> Iterator[None]:
    """
    Raises:
        OutputError: RESULTS cannot be made, or not be written.
    """
    try:
        RESULTS.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(
            f"the results cannot be written into {RESULTS.absolute()}: {error.strerror or error}. "
            "Run it in another folder"
        ) from error


def write(suite: str, results: dict[str, Any], chart: str) -> list[Path]:
    texts = {".json": json.dumps(results, indent=2) + "\n", ".svg": chart}
    with writing():
        for suffix, text in texts.items():
            (RESULTS / f"bench_{suite}{suffix}").write_text(text, encoding="utf-8")
    return [RESULTS / f"bench_{suite}{suffix}" for suffix in texts]
