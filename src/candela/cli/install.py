"""`candela install`: the plan, one question, and the work with its progress."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from candela.checkpoints import read_checkpoint
from candela.cli.output import plain, say, size
from candela.errors import CheckpointError, InstallError, InvalidRequest, SourceError
from candela.install.card import find_card
from candela.install.comfyui import ComfyUI, open_comfyui, search
from candela.install.http import Temporary
from candela.install.installing import finished, install_model, prepare
from candela.install.locking import locked
from candela.install.nodes import NodesPlan, install_nodes, plan_nodes
from candela.install.planning import Places, Plan, PlannedFile, plan_model, plan_unreached, publication_of
from candela.install.sources import MODEL_INDEX, open_source

NO_COMFYUI = "none"
DOING = {"fetch": "download", "resume": "go on", "here": "is here", "repair": "repair", "update": "update"}
SMALL = 1_000_000  # bytes: files below are named together


def run(model: str, comfyui: str | None, source: str, precision: str | None, dry_run: bool, yes: bool) -> int:
    """-> exit code

    Raises:
        CandelaError: before the question nothing was changed; after it, what has arrived is kept.
    """
    publication_of(model)
    found = chosen_comfyui(comfyui, yes)
    places = Places(found)
    origin = open_source(source)
    origin.notice = once()
    card = find_card()

    def planned() -> Plan:
        return plan_model(model, places, origin, precision, card, hashing())

    try:
        pack, unplanned = plan_nodes(found) if found else None, ""
    except SourceError as error:
        if not dry_run:
            raise
        pack, unplanned = None, f"the nodes in {found.folder if found else ''} were not planned: {error}"
    try:
        plan = planned()
    except Temporary:
        unreached = plan_unreached(model, places, origin, precision, card, hashing()) if dry_run else None
        if unreached is None or source != "hub":
            raise
        plan = unreached
    if unplanned:
        plan = replace(plan, notes=(*plan.notes, unplanned))
    changes = bool(plan.todo) or bool(pack and pack.changes)
    print("\n".join(map(plain, describe(plan, found, pack))))
    if dry_run:
        return 0
    if changes and not (yes or agreed()):
        print("Nothing was changed.")
        return 0
    if pack and pack.changes:
        install_nodes(pack)
        print(f"The nodes are in {pack.folder}. Restart ComfyUI to see them.")
    if not finished(plan):
        prepare(plan.lock)
        try:
            with locked(plan.lock, lambda: say(f"another installer is at work in {plan.root}: waiting for it")):
                plan = planned()  # the question may have stood for an hour, and another installer may have been here
                with Bars(plan) as bars:
                    install_model(plan, bars)
        except KeyboardInterrupt:
            say("stopped. What has arrived is kept: the same command goes on from there")
            return 130
        check(plan)
    print(plain(last_words(plan, found, changes)))
    return 0


def check(plan: Plan) -> None:
    """Is what was installed whole and of one piece, by its headers?

    Raises:
        InstallError: it is not.
    """
    # Split files without a tokenizer of their own are read by ComfyUI's, or bring one inside: no matter for this check.
    if "tokenizer" in dict(plan.parts) or (plan.folder and (Path(plan.folder) / MODEL_INDEX).is_file()):
        try:
            read_checkpoint(plan.model)
        except CheckpointError as error:
            raise InstallError(f"everything has arrived, but it cannot be used: {error}") from error


def chosen_comfyui(typed: str | None, yes: bool) -> ComfyUI | None:
    """The one given, else the one found; of several, the one that is chosen now.

    Raises:
        InstallError: the folder given is none.
        InvalidRequest: several, and nobody to ask.
    """
    if typed == NO_COMFYUI:
        return None
    if typed is not None:
        return open_comfyui(typed)
    found = search()
    if len(found) < 2:
        return next(iter(found), None)
    if yes or not sys.stdin.isatty():
        listed = ", ".join(str(one.folder) for one in found)
        raise InvalidRequest(f"there are {len(found)} ComfyUIs: {listed}. Choose one: --comfyui DIR, or --comfyui none")
    for number, one in enumerate(found, 1):
        print(f"  {number}  {one.folder}  (core {one.version or 'unknown'})")
    import typer

    answer = typer.prompt("Several ComfyUIs were found. Which one? (0: none)", type=typer.IntRange(0, len(found)))  # type: ignore[attr-defined]
    return found[answer - 1] if answer else None


def agreed() -> bool:
    """
    Raises:
        InvalidRequest: nobody is there to ask.
    """
    import typer

    if not sys.stdin.isatty():
        raise InvalidRequest(
            "this changes the disk, and there is no terminal to ask on: add --yes. Nothing was changed"
        )
    return typer.confirm("Go on?", default=True)


def describe(plan: Plan, comfyui: ComfyUI | None, pack: NodesPlan | None) -> list[str]:
    """The plan, for people: a heading, and labelled lines."""
    lines = [("precision", f"{plan.precision}: {plan.reason}") if plan.precision else ("", plan.reason)]
    if plan.files:
        lines += [("from", plan.source.name), ("into", str(plan.root)), *_files(plan)]
        lines.append(("download", f"{size(plan.left)} of {size(sum(file.remote.bytes for file in plan.files))}"))
        for disk in plan.disks:
            after = size(disk.free - disk.needed)
            lines.append(("disk", f"{size(disk.free)} free now, {after} afterwards ({disk.folder})"))
    lines += [("note", note) for note in plan.notes]
    if comfyui is None:
        lines.append(("nodes", "no ComfyUI was found or chosen: none are installed (--comfyui DIR names one)"))
    elif pack:
        lines += _describe_nodes(comfyui, pack)
    return [plan.model, *(f"  {label:10}{text}" for label, text in lines)]


def _files(plan: Plan) -> list[tuple[str, str]]:
    """A line for each large file, and one for the small ones of each state."""
    lines = [_line(file, plan.root) for file in plan.files if file.remote.bytes >= SMALL]
    small = [file for file in plan.files if file.remote.bytes < SMALL]
    for state in dict.fromkeys(file.state for file in small):
        some = [file.remote for file in small if file.state == state]
        amount = size(sum(remote.bytes for remote in some))
        what = f"{len(some)} small files" if len(some) > 1 else some[0].name
        lines.append(f"{amount:>9}  {DOING[state]:9} {what}")
    return list(zip(("files", *([""] * len(lines))), lines))


def _line(file: PlannedFile, root: Path) -> str:
    try:
        shown = file.target.relative_to(root).as_posix()
    except ValueError:  # in one of ComfyUI's extra model paths
        shown = str(file.target)
    more = {"repair": ": it is damaged", "update": ": a newer one is published", "resume": f": {size(file.left)} to go"}
    by = {"published": "published checksum", "hub": "the hub's checksum"}.get(file.remote.evidence, "no checksum")
    return f"{size(file.remote.bytes):>9}  {DOING[file.state]:9} {shown}{more.get(file.state, '')}  ({by})"


def _describe_nodes(comfyui: ComfyUI, pack: NodesPlan) -> list[tuple[str, str]]:
    where = f"{pack.folder} (ComfyUI {comfyui.version or 'of unknown version'})"
    if pack.foreign:
        return [("nodes", f"{pack.foreign} is there, and was not installed by this command: it is left as it is")]
    if not pack.changes:
        return [("nodes", f"{where}: already installed")]
    lines = [("nodes", f"{where}: {len(pack.write)} files, {size(pack.bytes)}")]
    lines += [("", f"{path} was edited since it was installed: replaced") for path in pack.edited]
    if pack.packages.versions:
        packages = ", ".join(_package(pack, name) for name in pack.packages.versions)
        lines.append(("", f"packages into {comfyui.python}: {packages}"))
    return [*lines, ("", "ComfyUI's torch is not touched")]


def _package(pack: NodesPlan, name: str) -> str:
    before = pack.packages.upgraded.get(name)
    return f"{name} {f'{before} -> ' if before else ''}{pack.packages.versions[name]}"


def last_words(plan: Plan, comfyui: ComfyUI | None, changed: bool) -> str:
    if plan.model == "demo" and not comfyui:
        return 'Nothing to install. Try: candela generate "a red star"'
    begin = "Done." if changed else "Everything was here already."
    if plan.parts or plan.folder:
        return f'{begin} Try: candela generate "a lighthouse at dusk" --model {plan.model}'
    return f"{begin} In ComfyUI: Templates, candela, demo_no_download" if comfyui else begin


def once() -> Callable[[str], None]:
    """Says each notice once in a row: four connections meet the same fault at the same time."""
    last = ""

    def notice(message: str) -> None:
        nonlocal last
        if message != last:
            last = message
            say(f"note: {message}")

    return notice


def hashing() -> Callable[[Path, int], None]:
    """Shows that a file which is here already is being read: twelve gigabytes take a while."""
    seen: set[Path] = set()

    def on_hash(path: Path, number: int) -> None:
        if path not in seen and path.stat().st_size > 500_000_000:
            say(f"comparing {path} ({size(path.stat().st_size)}) with its checksum")
        seen.add(path)

    return on_hash


class Bars:
    """A bar for each file and one for all; where nobody watches, a line for each file."""

    def __init__(self, plan: Plan):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        self._console = Console(stderr=True)
        self._watched = self._console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), Speed(),
            TimeRemainingColumn(), console=self._console, disable=not self._watched,
            redirect_stdout=sys.stdout.isatty(),
        )  # fmt: skip
        todo = plan.todo
        total = sum(file.remote.bytes for file in todo)
        self._all = self._bars.add_task(f"{len(todo)} files", total=total) if len(todo) > 1 else None

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, file: PlannedFile) -> Callable[[int], None]:
        task = self._bars.add_task(plain(file.remote.name), total=file.remote.bytes)
        if not self._watched:
            say(f"downloading {file.remote.name} ({size(file.left)})")

        self._task = task

        def report(number: int) -> None:
            self._bars.advance(task, number)
            if self._all is not None:
                self._bars.advance(self._all, number)

        return report

    def end(self, file: PlannedFile) -> None:
        if file.remote.bytes < SMALL:
            self._bars.update(self._task, visible=False)
        if not self._watched:
            say(f"{file.target} is in place, and {_evidence(file)}")


def _evidence(file: PlannedFile) -> str:
    if file.remote.digest:
        return f"its {file.remote.algorithm} is the one that {_WHO[file.remote.evidence]}"
    return "its length is right (nobody published a checksum)"


_WHO = {"published": "was published", "hub": "the hub gives"}
