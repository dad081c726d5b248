"""`candela`: the commands and their options. What they do is in the modules beside this one.

Exit codes: 0 done; 1 failed on the way (no memory, no picture from the model, disk full, output that nobody reads),
finished pictures were kept; 2 bad input, nothing was written; 130 stopped with Ctrl-C, finished pictures were kept.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from candela.cli.output import error_report, exit_code, plain, print_json, say, standard_streams
from candela.errors import CandelaError


def path(typed: str | Path) -> Path:
    """Of an option; a default comes as a Path. An empty one is an unset variable of a shell script, never the working
    folder."""
    text = str(typed)
    if not text or "\0" in text:
        raise typer.BadParameter("it is empty" if not text else "no name has a zero byte in it")
    return Path(text)


app = typer.Typer(
    name="candela",
    help="Z-Image and Lumina pictures from prompts, through diffusers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="One picture for each.")] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts", parser=path, metavar="FILE", help="A text file with one prompt per line; - is standard input."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name, folder, weight file, id of a downloaded hub repository, or transformer=PATH,text_encoder=PATH,"
            "vae=PATH. (default: demo)"
        ),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What the picture should not show (needs guidance).")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    steps: Annotated[int | None, typer.Option(help="Model evaluations per picture.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Off at 0 for Z-Image (ComfyUI's cfg minus 1), at 1 for Lumina.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Picture k takes seed + k. (default: 0)")] = None,
    count: Annotated[int, typer.Option(help="Pictures per prompt.")] = 1,
    init: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="IMAGE", help="A picture to start from; on white where transparent."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="With --init: 1 ignores it, 0.5 keeps its layout. (default: 0.6)")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="A LoRA, and how strongly (default: 1); several add up."),
    ] = None,
    fast: Annotated[
        bool | None,
        typer.Option(
            "--fast/--exact", help="8-bit arithmetic, on NVIDIA GPUs from 2020 on. (default: exact, or as --like)"
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="IMAGE", help="Take every setting from a picture made by Candela."),
    ] = None,
    out: Annotated[Path, typer.Option(parser=path, metavar="PATH", help="A folder, or a file ending in .png.")] = Path(
        "outputs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")] = False,
) -> None:
    """Make pictures from prompts."""

    def run() -> int:
        from candela.cli.generate import Options, run

        options = Options(
            tuple(prompts or ()), prompts_file, model, negative, width, height, steps, guidance, seed, count,
            init, strength, tuple(lora or ()), fast, like, out, as_json,
        )  # fmt: skip
        return run(options)

    _guarded(run, as_json)


@app.command()
def show(image: Annotated[Path, typer.Argument(parser=path, metavar="IMAGE", help="A PNG made by Candela.")]) -> None:
    """Print how a picture was made."""

    def run() -> int:
        from dataclasses import asdict

        from candela.record import read_record

        for name, value in asdict(read_record(image)).items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {item}" for key, item in value.items())
            if name == "loras":
                value = ", ".join(f"{one['name']} at {one['strength']:g}" for one in value) or None
            if value is not None and name not in ("remake", "fingerprint"):
                print(f"{name + ':':17}{plain(value)}")
        return 0

    _guarded(run)


@app.command()
def identify(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Weight files, or folders of a model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what files are, from their headers alone; of several, whether they form one model."""

    def run() -> int:
        from candela.cli.identify import run

        return run(paths, as_json)

    _guarded(run, as_json)


@app.command()
def install(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name of `candela models`, or owner/name on the hub.")
    ],
    comfyui: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="ComfyUI's folder, or none. (default: COMFYUI_DIR, else the one found)"),
    ] = None,
    source: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help="hub, a folder, or a URL below which the files lie.")
    ] = "hub",
    precision: Annotated[
        str | None, typer.Option(help="bf16, int8, nvfp4, ... (default: the most precise that the card holds)")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Download a model and put the nodes into ComfyUI; shows the plan and asks first."""

    def run() -> int:
        from candela.cli.install import run

        return run(model, comfyui, source, precision, dry_run, yes)

    _guarded(run)


@app.command()
def doctor(
    comfyui: Annotated[
        Path | None, typer.Option(parser=path, metavar="DIR", help="ComfyUI's folder. (default: as install)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what works here, what does not, and what to do about it."""

    def run() -> int:
        from candela.cli.doctor import run

        return run(comfyui, as_json)

    _guarded(run, as_json)


@app.command()
def bench(
    suite: Annotated[str, typer.Option(help="quick, cpu or gpu.")] = "quick",
    against: Annotated[
        str, typer.Option(metavar="SIDES", help="diffusers, or diffusers,comfyui (gpu suite; COMFYUI_DIR).")
    ] = "diffusers",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure Candela beside diffusers, side by side; writes a table and a chart into benchmarks/results."""

    def run() -> int:
        from candela.cli.bench import run

        return run(suite, against, as_json)

    _guarded(run, as_json)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for generate --model; installed or not.")],
    vram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of a card, 8GB. (default: this machine's card, else its CPU)")
    ] = None,
    ram: Annotated[str | None, typer.Option(metavar="SIZE", help="Main memory. (default: this machine's)")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Of the picture. (default: the model's own)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a model would take on a card, how fast it would be, and what else there is; nothing is loaded."""

    def run() -> int:
        from candela.cli.plan import run

        return run(model, vram, ram, size, as_json)

    _guarded(run, as_json)


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the models that are usable on this machine, and those that could be."""

    def run() -> int:
        from candela.cli.models import run

        return run(as_json)

    _guarded(run, as_json)


@app.command()
def verify(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="One model. (default: all)")] = None,
) -> None:
    """Read installed files again and compare their checksums."""

    def run() -> int:
        from candela.cli.verify import run

        return run(model)

    _guarded(run)


@app.command()
def uninstall(
    what: Annotated[str, typer.Argument(metavar="MODEL|nodes", help="A model, or the nodes in ComfyUI.")],
) -> None:
    """Remove exactly what `install` brought."""

    def run() -> int:
        from candela.cli.uninstall import run

        return run(what)

    _guarded(run)


def _version(wanted: bool) -> None:
    if wanted:
        from candela import __version__

        print(f"candela {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _tell(error: CandelaError, as_json: bool) -> int:
    if as_json:
        print_json({"error": error_report(error)})
    say(str(error))
    return exit_code(error)


def main() -> None:
    """The program `candela`."""
    with standard_streams():
        try:
            os.getcwd()
        except OSError as error:  # removed meanwhile: the libraries of torch do not even load there
            say(f"the working folder cannot be used ({error.strerror}): change into another one")
            sys.exit(2)
        app()


def _guarded(run: Callable[[], int], as_json: bool = False) -> None:
    """Turns the error tree into messages and exit codes. Anything outside it is a defect, and shows its traceback."""
    for stream in (sys.stdout, sys.stderr):  # a path that the console cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run()
    except CandelaError as error:
        code = _tell(error, as_json)
    except MemoryError:  # where nobody counted on it: an import, a list
        from candela.cli.libraries import no_room

        code = _tell(no_room("no memory was left"), as_json)
    except KeyboardInterrupt:
        code = 130
        say("stopped")
    raise typer.Exit(code)
