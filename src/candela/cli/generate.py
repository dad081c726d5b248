"""`candela generate`: options to requests, one picture at a time, each saved as soon as it is done."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candela.cli.libraries import import_libraries
from candela.cli.output import error_report, print_json, say
from candela.cli.prompts import check_typed, read_prompts
from candela.cli.remaking import check_same_model, missing, places, recorded_model, remakeable
from candela.errors import Cancelled, CandelaError, CandelaWarning, InvalidRequest, OutputError
from candela.pictures import opened
from candela.record import Record, make_folder, pixels_sha256, save_png
from candela.rgb import as_rgb

if TYPE_CHECKING:
    from PIL import Image

    from candela.engine import Engine, Request, Step

OTHER_FORMATS = {".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Options:
    """What was typed; None where an option was left out."""

    prompts: tuple[str, ...]
    prompts_file: Path | None
    model: str | None
    negative: str | None
    width: int | None
    height: int | None
    steps: int | None
    guidance: float | None
    seed: int | None
    count: int
    init: Path | None
    strength: float | None
    loras: tuple[str, ...]
    fast: bool | None
    like: Path | None
    out: Path
    as_json: bool


def run(options: Options) -> int:
    """Checks everything that can be checked, then loads the model and makes the pictures. -> exit code

    Raises:
        CandelaError: bad input; nothing has been written.
    """
    record = remakeable(options.like) if options.like else None
    settings = request_settings(options, record)
    model = options.model
    if model is None:
        model = recorded_model(record, options.like) if record and options.like else "demo"

    from candela.checkpoints import read_checkpoint

    checkpoint = read_checkpoint(model)  # wrong files are told before the libraries are imported, which takes seconds
    if record and options.like:
        check_same_model(record, options.like, checkpoint, found_by_name=options.model is None)

    with undisturbed():
        import_libraries()
        from candela.cli.loras import wanted_loras
        from candela.engine import Engine, Request
        from candela.engine.adapters import check_loras
        from candela.engine.heap import own_process
        from candela.families import family_of

        own_process()
        quiet_libraries()
        began = time.perf_counter()
        request = Request(**settings)
        family = family_of(checkpoint)
        request.resolved(family, family.defaults(checkpoint))
        loras = wanted_loras(options.loras, record, options.like)
        check_loras(checkpoint, family.name, loras)
        target = Target(options.out, request.total)
        with spoken_warnings(muted=False):
            engine = Engine.load(model, fast=fast_mode(options.fast, record))
            applied = engine.set_loras(loras)
    request = engine.check(request)
    target.prepare()
    if record:
        note_other_machine(record, engine)
    for lora in applied:
        say(f"LoRA {lora.path} at {lora.strength:g}: all of its {lora.modules} modules applied")
    code, report = make_pictures(engine, request, target, quiet=options.as_json)
    if options.as_json:
        report["loras"] = [{"path": lora.path, "strength": lora.strength, "modules": lora.modules} for lora in applied]
        report["seconds"]["total"] = round(time.perf_counter() - began, 4)
        print_json(report)
    return code


def make_pictures(engine: Engine, request: Request, target: Target, quiet: bool) -> tuple[int, dict[str, Any]]:
    """One picture after the other, each saved at once. -> (exit code, the report that --json prints)"""
    images: list[dict[str, Any]] = []
    seconds = {"load": engine.load_seconds, "encode": 0.0, "denoise": 0.0, "decode": 0.0}
    peak, stop, code = 0, threading.Event(), 0
    failure: dict[str, Any] = {}
    with stopped_by_ctrl_c(stop), progress_bar(request.total, quiet) as on_step:
        for index in range(request.total):
            try:
                with spoken_warnings(muted=index > 0):
                    result = engine.generate(request.alone(index), on_step=on_step(index), cancelled=stop.is_set)
                path = target.save(result.images[0], result.records[0], index)
            except CandelaError as error:
                stopped = isinstance(error, Cancelled)
                if not images and not stopped:
                    raise
                say(f"{error} (picture {index + 1} of {request.total}; {len(images)} finished and kept)")
                code, failure = (130, {}) if stopped else (1, {"error": error_report(error)})
                break
            images.append({"path": str(path), "seed": result.seeds[0]})
            peak = max(peak, result.peak_bytes)
            for stage in ("encode", "denoise", "decode"):
                seconds[stage] += getattr(result.seconds, stage)
            if not quiet:
                print(path, flush=True)
    rounded = {stage: round(value, 4) for stage, value in seconds.items()}
    return code, {"model": engine.model, "images": images, "seconds": rounded, "peak_bytes": peak, **failure}


def request_settings(options: Options, record: Record | None) -> dict[str, Any]:
    """The request's fields: what was typed, over what `--like` brings, over the request's own defaults."""
    prompts = list(options.prompts)
    check_typed([*prompts, options.negative or ""])
    if options.prompts_file:
        prompts += read_prompts(options.prompts_file)
    if not prompts and record:
        prompts = [record.prompt]
    if not prompts:
        raise InvalidRequest("no prompt: give at least one, or a file of them with --prompts FILE")

    def pick(name: str, default: Any = None) -> Any:
        typed = getattr(options, "negative" if name == "negative_prompt" else name)
        return typed if typed is not None else getattr(record, name) if record else default

    image = open_start(options.init, record, options.like)
    if options.strength is not None and image is None:
        raise InvalidRequest(f"--strength {options.strength:g} needs a picture to start from: add --init IMAGE")
    return {
        "prompt": prompts,
        "negative_prompt": pick("negative_prompt"),
        "width": pick("width"),
        "height": pick("height"),
        "steps": pick("steps"),
        "guidance": pick("guidance"),
        "seed": pick("seed", 0),
        "count": options.count,
        "image": image,
        "strength": record.strength if record and record.start and options.strength is None else options.strength,
    }


def fast_mode(typed: bool | None, record: Record | None) -> bool | str:
    """For `Engine.load`: what was typed, else the very arithmetic of the picture that is made again."""
    if typed is not None or record is None:
        return bool(typed)
    if record.mode == "exact":
        return False
    kind = record.mode.removeprefix("fast ")
    if kind == record.mode or not kind.isalnum():
        raise InvalidRequest(
            f"the picture was made in the mode {record.mode[:80]!r}, which this Candela does not have. Add --exact or "
            "--fast to make it otherwise"
        )
    return kind


def open_start(typed: Path | None, record: Record | None, like: Path | None) -> Any:
    """The picture to start from, if any: the one typed, else the record's, which must be the same as then."""
    start = record.start if record else None
    if typed is not None:
        image = read_start(typed)
        if start and pixels_sha256(image) != start.sha256:
            say(f"note: {typed} is not the picture that {like} was made from")
        return image
    if start is None or like is None:
        return None
    if not start.name:
        raise InvalidRequest(f"{like} was made from a start image without a file name: add it with --init")
    found = places(start.name, like)
    if not found:
        raise missing("start image", start.name, like, "name it with --init")
    for path in found:
        image = read_start(path)
        if pixels_sha256(image) == start.sha256:
            return image
    raise InvalidRequest(
        f"the start image {found[0]} has changed since {like} was made, or is another one of that name: its pixels do "
        "not match. Put the old one back, or name one with --init"
    )


def read_start(path: Path) -> Image.Image:
    """The picture at `path`, in RGB and upright.

    Raises:
        InvalidRequest: there is none, or it cannot be read.
    """
    from PIL import ImageOps

    try:
        with opened(path) as image:
            ImageOps.exif_transpose(image, in_place=True)  # a telephone's picture says which way is up
            picture = as_rgb(image)
            picture.load()
    except InvalidRequest:
        raise
    except FileNotFoundError as error:
        raise InvalidRequest(f"the start image {path} does not exist") from error
    except ValueError as error:
        raise InvalidRequest(f"the start image {path} cannot be read as a picture: {error}") from error
    vars(picture)["filename"] = os.path.abspath(path)  # the record names it
    return picture


class Target:
    """Where pictures go: a folder, or one file whose further pictures are numbered. Nothing is overwritten."""

    def __init__(self, out: Path, images: int):
        if out.suffix.lower() in OTHER_FORMATS:
            raise OutputError(f"--out {out}: pictures are written as PNG. Name a folder, or a file ending in .png")
        is_file = out.suffix.lower() == ".png"
        self.folder = out.parent if is_file else out
        self.names: list[str | None] = [None] * images
        if is_file:
            self.names = [out.stem] if images == 1 else [f"{out.stem}-{k + 1}" for k in range(images)]
        try:
            self._check()
        except OSError as error:  # a parent that may not be looked into, a name too long
            raise OutputError(
                f"cannot write into {self.folder}: {error.strerror or error}. Choose another --out"
            ) from error

    def _check(self) -> None:
        taken = [f"{name}.png" for name in self.names if name and _lies(self.folder / f"{name}.png")]
        if taken:
            raise OutputError(f"{self.folder / taken[0]} exists and is not overwritten: choose another --out")
        existing = next((p for p in [self.folder, *self.folder.parents] if _lies(p)), None)
        if existing is not None and not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise OutputError(
                f"cannot write into {self.folder}: {existing} is not a folder that can be written. Choose another --out"
            )

    def prepare(self) -> None:
        """Creates the folder and proves that it can be written, before minutes are spent on a picture."""
        try:
            make_folder(self.folder)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OutputError(
                f"cannot write into {self.folder}: {error.strerror or error}. Choose another --out"
            ) from error

    def save(self, image: Any, record: Record, index: int) -> Path:
        return save_png(image, record, self.folder, self.names[index])


def _lies(path: Path) -> bool:
    """Is there anything, be it a link to nothing?

    Raises:
        OSError: nobody may look, or the name is too long.
    """
    try:
        os.lstat(path)
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def stopped_by_ctrl_c(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C lets the step finish and keeps what is done; a second one ends the program at once."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def on_signal(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress_bar(pictures: int, quiet: bool) -> Iterator[Callable[[int], Callable[[Step], None]]]:
    """-> a function: picture's index -> step callback. Drawn on stderr, only where someone watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:  # a bar that is switched off still ends with a line in rich before 15
        yield lambda index: lambda step: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps  {task.fields[pace]}"),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # paths that go into a pipe must not end up on the terminal
    )

    def on_step(index: int) -> Callable[[Step], None]:
        label = f"picture {index + 1}/{pictures}" if pictures > 1 else "picture"
        task = bar.add_task(label, total=None, pace="")

        def show(step: Step) -> None:
            # A pipeline with a prior finds out on the way that there is more to do, so the bar may come back.
            more, pace = step.index < step.steps, f"{step.seconds:.2f} s/step"
            bar.update(task, total=step.steps, completed=step.index, pace=pace, visible=more)

        return show

    with bar:
        yield on_step


@contextmanager
def spoken_warnings(muted: bool) -> Iterator[None]:
    """Our own warnings as one plain line each; those of libraries stay off the terminal."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if issubclass(warning.category, CandelaWarning) and not muted:
            say(f"note: {warning.message}")


def note_other_machine(record: Record, engine: Engine) -> None:
    """`--like` makes the same pixels where the same software runs in the same precision; says so elsewhere."""
    from candela.record import versions

    now = versions()
    then = f"in {record.dtype} on {record.device} with candela {record.versions.get('candela', '?')}"
    here = f"in {str(engine.dtype).removeprefix('torch.')} on {engine.device.type} with candela {now['candela']}"
    if then != here:
        say(f"note: that picture was made {then}; {here} the pixels may differ")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Garbage collection waits while the libraries are imported: they make a million objects that stay, and to look
    through them again and again takes a sixth of the start. It does not look at them later either."""
    if "torch" in sys.modules:  # called from a program that has them already
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def quiet_libraries() -> None:
    """Keeps the libraries' own progress bars and advice off the terminal."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
