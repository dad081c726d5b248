"""What installing a model would do, worked out before anything is changed."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from candela.checkpoints.folder import HALF, PLAIN
from candela.checkpoints.manifest import DAMAGED, GOOD, Kept, Manifest, home, read_manifest
from candela.checkpoints.published import PUBLICATIONS, QWEN_FOLDER, Publication, Published
from candela.errors import InstallError, InvalidRequest, ModelNotFound, NoSpace, SourceError
from candela.install import transfer
from candela.install.card import Card, pick_precision
from candela.install.comfyui import ComfyUI
from candela.install.sources import MODEL_INDEX, Absent, PublishedSizes, Remote, Source, components_of

OnHash = Callable[[Path, int], None]  # a file that is being compared, and how many bytes of it just were
MARGIN = 100_000_000  # bytes of every disk that stay free
FULL, FP16 = WHOLE = ("full", "fp16")  # precisions of an authors' repository: as published, or its 16-bit variant
KEEP = (".json", ".txt", ".model", ".jinja", ".safetensors")  # of a repository; pickles and ONNX stay behind


@dataclass(frozen=True)
class PlannedFile:
    """One file of a model.

    Attributes:
        target: where it goes, or lies already.
        state: fetch, resume (a part is here), here, repair (ours, and damaged), or update (ours, and not the one that
            is published now).
        left: bytes that have to be downloaded.
    """

    remote: Remote
    target: Path
    component: str
    state: str
    left: int


@dataclass(frozen=True)
class Disk:
    """One file system that something is written to. In bytes."""

    folder: Path
    free: int
    needed: int


@dataclass(frozen=True)
class Plan:
    """Attributes:
    root: the models folder.
    lock: the folder in which installers wait for each other.
    reason: why this precision.
    folder: of a model in diffusers layout, else "".
    parts: component -> file or folder, of split files.
    notes: what the user should know, as sentences.
    """

    model: str
    precision: str
    reason: str
    source: Source
    root: Path
    files: tuple[PlannedFile, ...] = ()
    folder: str = ""
    parts: tuple[tuple[str, str], ...] = ()
    lock: Path = Path()
    disks: tuple[Disk, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def todo(self) -> list[PlannedFile]:
        return [file for file in self.files if file.state != "here"]

    @property
    def left(self) -> int:
        return sum(file.left for file in self.files)


class Places:
    """Model folders by kind: ComfyUI's, extra paths included, or those in the user's data folder."""

    def __init__(self, comfyui: ComfyUI | None):
        self._comfyui = comfyui
        self.managed = comfyui is not None
        self.root = comfyui.models["diffusion_models"][0].parent if comfyui else home() / "models"
        self.lock = self.of("diffusion_models")[0]
        self.digests: dict[tuple[str, int, int, str], str] = {}  # of files hashed in this run

    def of(self, kind: str) -> tuple[Path, ...]:
        """The first is where new files go."""
        return self._comfyui.models[kind] if self._comfyui else (self.root / kind,)


def publication_of(model: str) -> Publication:
    """
    Raises:
        ModelNotFound: neither a name of the catalogue nor owner/name.
    """
    if model in PUBLICATIONS:
        return PUBLICATIONS[model]
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        return Publication(model)
    near = difflib.get_close_matches(model.lower(), PUBLICATIONS, n=2, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise ModelNotFound(
        f"no model {model!r} is known. {hint}There are {', '.join(PUBLICATIONS)}, and any hub repository in diffusers "
        "layout as owner/name"
    )


def plan_model(
    model: str, places: Places, source: Source, precision: str | None, card: Card | None, on_hash: OnHash
) -> Plan:
    """Asks the source what there is, and the disk what is here. Changes nothing.

    Raises:
        ModelNotFound: no such model.
        SourceError, WrongContent: the source does not have it.
        InvalidRequest: no such precision.
        InstallError: another file stands where one should go; a folder cannot be looked into.
        NoSpace: it would not fit.
    """
    try:
        return _plan_model(model, places, source, precision, card, on_hash)
    except OSError as error:
        raise InstallError(
            f"{error.filename or places.root} cannot be read ({error.strerror or error}). Nothing was changed. Allow "
            "it, or install as its owner"
        ) from error


def plan_unreached(
    model: str, places: Places, source: Source, precision: str | None, card: Card | None, on_hash: OnHash
) -> Plan | None:
    """As `plan_model`, for a source that cannot be reached: from the lengths and checksums that stand in Candela, and
    with a note that says so. None for a model of which none stand there."""
    if precision in WHOLE or not publication_of(model).split:
        return None
    plan = plan_model(model, places, PublishedSizes(f"{source.name} (not reached)"), precision, card, on_hash)
    beside = "; the tokenizer's small files come on top" if publication_of(model).tokenizer else ""
    note = f"sizes as published, not compared with {source.name}, which cannot be reached{beside}"
    return replace(plan, notes=(*plan.notes, note))


def _plan_model(
    model: str, places: Places, source: Source, precision: str | None, card: Card | None, on_hash: OnHash
) -> Plan:
    publication, manifest = publication_of(model), read_manifest()
    if not publication.repository:
        return Plan(model, "", "comes with Candela: nothing to download", source, places.root)
    notes: list[str] = []
    found = None
    if publication.split and precision not in WHOLE:
        found = _split(model, publication, places, source, precision, card, notes, manifest)
    folder = "" if found else str(places.of(publication.kind)[0] / model)
    found = found or _repository(model, publication, places, source, precision, manifest)
    precision, reason, remotes = found
    files = [_planned(remote, kind, component, places, manifest, on_hash, notes) for remote, kind, component in remotes]
    parts = {file.component: str(file.target) for file in files if file.component not in ("", "tokenizer")}
    if tokenizer := next((file for file in files if file.component == "tokenizer"), None):
        parts["tokenizer"] = str(tokenizer.target.parent)
    plan = Plan(
        model, precision, reason, source, places.root, tuple(files), folder,
        () if folder else tuple(parts.items()), places.lock, _disks(files), tuple(notes),
    )  # fmt: skip
    for disk in plan.disks:
        if disk.needed + MARGIN > disk.free:
            raise NoSpace(
                f"{disk.folder} has {disk.free / 1e9:.2f} GB free, and {model} needs {disk.needed / 1e9:.2f} GB more "
                "there. Nothing was written. Free some space, take a smaller --precision, or name a folder on another "
                f"disk: {'in ComfyUI: extra_model_paths.yaml' if places.managed else 'CANDELA_HOME=FOLDER'}"
            )
    return plan


Wanted = tuple[Remote, str, str]  # file, kind of folder (and folders below it), component
Choice = tuple[str, str, list[Wanted]]  # precision, why this one, its files


def _split(
    model: str, publication: Publication, places: Places, source: Source, precision: str | None, card: Card | None,
    notes: list[str], manifest: Manifest,
) -> Choice | None:  # fmt: skip
    """None where the source has no such files and may have the authors' repository."""
    if precision is not None and precision not in publication.split:
        raise InvalidRequest(
            f"there is no {model} in {precision}. Choose --precision {', '.join([*publication.split, FULL])}"
        )
    offers: dict[str, list[Wanted]] = {}
    missing: Absent | None = None
    for name, files in publication.split.items():
        if precision in (None, name):
            try:
                revisions = _unfinished(manifest, model, name, places)
                offers[name] = [(_one(source, file, revisions), file.kind, file.component) for file in files]
            except Absent as error:
                missing = missing or error
    if not offers:
        assert missing
        if precision or not _has(source, publication.repository):
            raise missing
        return None
    chosen, reason = pick_precision(model, offers, card, places.managed)
    if precision:
        chosen, reason = precision, "asked for"
    if not publication.tokenizer:
        return chosen, reason, offers[chosen]
    try:
        paths = ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
        kind = f"text_encoders/{QWEN_FOLDER}"
        revision = _unfinished(manifest, model, chosen, places).get(publication.tokenizer, "")
        tokenizer = source.files(publication.tokenizer, paths, kind, revision)
        offers[chosen] += [(remote, kind, "tokenizer") for remote in tokenizer]
    except Absent:
        if not places.managed:
            raise
        notes.append(
            f"{source.name} has no tokenizer of {publication.tokenizer}. ComfyUI brings one of its own; the shell will "
            "ask for one"
        )
    return chosen, reason, offers[chosen]


def _has(source: Source, repository: str) -> bool:
    try:
        return any(remote.path == MODEL_INDEX for remote in source.files(repository))
    except Absent:
        return False


def _one(source: Source, file: Published, revisions: dict[str, str]) -> Remote:
    return source.files(file.repository, [file.path], file.kind, revisions.get(file.repository, ""))[0]


def _repository(
    model: str, publication: Publication, places: Places, source: Source, precision: str | None, manifest: Manifest
) -> Choice:
    """A whole repository in diffusers layout, or a single component's."""
    name = publication.repository
    revisions = _unfinished(manifest, model, precision, places)
    kind = f"{publication.kind}/{model}"
    files = source.files(name, kind=kind, revision=revisions.get(name, ""))
    index = next((remote for remote in files if remote.path == MODEL_INDEX), None)
    config = next((remote for remote in files if remote.path == "config.json"), None)
    if index is None and config is None:
        raise SourceError(
            f"{source.name} has no {name} in diffusers layout: there is no {MODEL_INDEX}. Check the source; files of "
            "other layouts are put into ComfyUI's model folders by hand"
        )
    folders = {component for component, _ in components_of(source.read(index))} if index else {""}
    belonging = [
        remote for remote in files
        if (remote.path.rpartition("/")[0] in folders and remote.path.endswith(KEEP) and PLAIN.fullmatch(remote.name))
        or remote is index
    ]  # fmt: skip
    full, half = _variant(belonging, half=False), _variant(belonging, half=True)
    offers = {FULL: full} if full else {}
    if half:
        offers = {FP16: half, **offers}
    if not offers:
        raise SourceError(f"{source.name}: {name} has no safetensors weights for {', '.join(sorted(folders))}")
    if precision is not None and precision not in offers:
        raise InvalidRequest(f"there is no {model} in {precision}. Choose --precision {' or '.join(offers)}")
    chosen = precision or next(iter(offers))
    reason = "asked for" if precision else "half the size of full" if half and full else "the only one there is"
    return (
        chosen,
        reason,
        [(remote, str(PurePosixPath(kind) / PurePosixPath(remote.path).parent), "") for remote in offers[chosen]],
    )


def _variant(files: list[Remote], half: bool) -> list[Remote]:
    """The files with weights of one variant only; none if a component has no such weights."""

    def is_half(remote: Remote) -> bool:
        return f".{HALF}." in remote.name or f".{HALF}-" in remote.name

    def is_weights(remote: Remote) -> bool:
        return remote.path.endswith((".safetensors", ".safetensors.index.json", f".index.{HALF}.json"))

    components = {remote.path.rpartition("/")[0] for remote in files if is_weights(remote)}
    chosen = [remote for remote in files if not is_weights(remote) or is_half(remote) == half]
    has = {remote.path.rpartition("/")[0] for remote in chosen if is_weights(remote)}
    return chosen if components and has == components else []


def _unfinished(manifest: Manifest, model: str, precision: str | None, places: Places) -> dict[str, str]:
    """repository -> revision of an install that was cut off: it goes on with the same files."""
    for entry in manifest.models:
        if (entry.model, entry.root) == (model, str(places.root)) and precision in (None, entry.precision):
            origins = [manifest.files[file].origin for file in entry.files if file in manifest.files]
            if not entry.whole:
                found = [re.match(r"([^@]+)@(\w+)/", origin) for origin in origins]
                return {match[1]: match[2] for match in found if match}
    return {}


def _planned(
    remote: Remote, kind: str, component: str, places: Places, manifest: Manifest, on_hash: OnHash, notes: list[str]
) -> PlannedFile:
    first, _, below = kind.partition("/")
    folders = [folder / below for folder in places.of(first)]
    target = folders[0] / remote.name
    for path in _already(folders, remote.name, search=not below):
        kept = manifest.files.get(str(path))
        if is_it(path, remote, kept, places, on_hash):
            if not remote.digest and not (kept and kept.unchanged(path)):
                notes.append(f"{path} was there before; nobody published a checksum for it: compared by length only")
            return PlannedFile(remote, path, component, "here", 0)
    if os.path.lexists(target):
        return PlannedFile(remote, target, component, _in_the_way(target, remote, manifest), remote.bytes)
    here = transfer.arrived(remote, target) if transfer.part_of(target).is_file() else 0
    return PlannedFile(remote, target, component, "resume" if here else "fetch", remote.bytes - here)


def _in_the_way(target: Path, remote: Remote, manifest: Manifest) -> str:
    """-> why what stands at `target` may be replaced: it is ours, and nobody wrote it since.

    Raises:
        InstallError: somebody did.
    """
    kept = manifest.files.get(str(target))
    if kept and kept.ours and kept.unchanged(target):
        return "repair" if kept.state == DAMAGED else "update"
    if not target.exists():
        raise InstallError(
            f"{target} is a link to {os.readlink(target)}, and there is nothing. Is its disk there? Nothing was changed"
        )
    raise InstallError(
        f"{target} is there, and it is another file ({target.stat().st_size} bytes; {remote.origin} has {remote.bytes}"
        f"{f', {remote.algorithm} {remote.digest}' if remote.digest else ''}). It is not overwritten: move it away, "
        "and run the same command again"
    )


def _already(folders: Iterable[Path], name: str, search: bool) -> list[Path]:
    """Where a file of that name lies: right there, or anywhere below a model folder, which ComfyUI searches too."""
    direct = [folder / name for folder in folders]
    deeper = (
        [Path(at) / name for folder in folders for at, _, files in os.walk(folder) if name in files] if search else []
    )
    return [path for path in dict.fromkeys([*direct, *deeper]) if path.is_file()]


def is_it(path: Path, remote: Remote, kept: Kept | None, places: Places, on_hash: OnHash) -> bool:
    """Is the file at `path` the published one? What was compared before and is unchanged is not hashed again."""
    stat = path.stat()
    if stat.st_size != remote.bytes:
        return False
    known = kept is not None and kept.state == GOOD and kept.unchanged(path)
    if kept and known and (remote.algorithm == "sha256" or kept.origin == remote.origin):
        return remote.algorithm != "sha256" or kept.sha256 == remote.digest
    if not remote.digest:
        return kept is None or kept.state != DAMAGED  # or put into place by a run that was killed before it said so
    key = (str(path), stat.st_size, stat.st_mtime_ns, remote.algorithm)
    if key not in places.digests:
        report = lambda number: on_hash(path, number)  # noqa: E731
        places.digests[key] = transfer.digest_of(path, {remote.algorithm}, report)[remote.algorithm]
    return places.digests[key] == remote.digest


def _disks(files: Iterable[PlannedFile]) -> tuple[Disk, ...]:
    """Free and needed bytes, a file system each."""
    disks: dict[int, Disk] = {}
    for file in files:
        if not file.left:
            continue
        existing = next(parent for parent in file.target.parents if parent.exists())
        device = existing.stat().st_dev
        before = disks.get(device) or Disk(existing, shutil.disk_usage(existing).free, 0)
        disks[device] = Disk(before.folder, before.free, before.needed + file.left)
    return tuple(disks.values())
