"""Models from every kind of source, to where they belong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.install.conftest import (
    CANDELA,
    INSTALL,
    LUMINA,
    ROOT,
    Machine,
    content,
    published_by,
    sha256,
    times,
    write_lumina,
    write_tensors,
)
from tests.install.hub import Hub
from tests.install.publish import publish_turbo

TURBO = "z-image-turbo"
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
QWEN = "text_encoders/qwen_3_4b_tokenizer"


@pytest.fixture(scope="module")
def turbo(tmp_path_factory) -> Path:
    """The demo as Z-Image Turbo's files, and their checksums."""
    root = tmp_path_factory.mktemp("turbo")
    publish_turbo(root, precisions=("bf16", "int8"))
    return root


@pytest.fixture
def split(turbo, hub, machine) -> dict[str, Path]:
    """The hub has Z-Image Turbo too, and Candela knows its checksums. -> kind of model folder -> most precise file"""
    shutil.copytree(turbo, hub.root, dirs_exist_ok=True)
    hub.publish()
    machine.environment["CANDELA_TEST_CHECKSUMS"] = str(hub.root / "checksums.json")
    folder = hub.root / "Comfy-Org/z_image_turbo/split_files"
    names = ("diffusion_models/z_image_turbo_bf16", "text_encoders/qwen_3_4b", "vae/ae")
    return {name.partition("/")[0]: folder / f"{name}.safetensors" for name in names}


def assert_turbo(machine: Machine, split: dict[str, Path], root: Path) -> None:
    """Everything of the most precise Z-Image Turbo is where ComfyUI looks for it, and nothing else."""
    tokenizer = content(root / "Tongyi-MAI" / "Z-Image-Turbo" / "tokenizer")
    wanted = {f"{kind}/{file.name}": sha256(file) for kind, file in split.items()}
    wanted |= {f"{QWEN}/{name}": tokenizer[name] for name in ("tokenizer.json", "tokenizer_config.json")}
    assert content(machine.models) == wanted
    evidence = {Path(path).name: kept["evidence"] for path, kept in manifest(machine)["files"].items()}
    assert {evidence[file.name] for file in split.values()} == {"published"}


def manifest(machine: Machine) -> dict:
    return json.loads((machine.home / "data" / "manifest.json").read_text())


# --- the hub ------------------------------------------------------------------------------------


def test_a_folder_from_the_hub(hub, machine):
    done = machine.install()
    assert done.code == 0, done.output
    assert content(machine.lumina) == published_by(hub.root / LUMINA), "weights and what describes them, no picture"
    total = sum(p.stat().st_size for p in machine.lumina.rglob("*") if p.is_file())
    assert total <= hub.bodies <= total + 10_000, "every byte once, but for the redirects' own"
    (entry,) = manifest(machine)["models"]
    assert (entry["model"], entry["whole"], entry["folder"]) == ("lumina-image-2", True, str(machine.lumina))
    kept = manifest(machine)["files"]
    assert {Path(path).relative_to(machine.lumina).as_posix(): k["sha256"] for path, k in kept.items()} == content(
        machine.lumina
    )
    assert {k["evidence"] for k in kept.values()} == {"hub"}
    assert all(f"@{hub.commit(LUMINA)}/" in k["origin"] for k in kept.values())


def test_split_files_from_the_hub(split, hub, machine):
    done = machine.install(TURBO)
    assert done.code == 0, done.output
    assert_turbo(machine, split, hub.root)


def test_another_precision(split, hub, machine):
    done = machine.install(TURBO, "--precision", "int8")
    assert done.code == 0, done.output
    names = {p.name for p in machine.models.rglob("*.safetensors")}
    assert names == {"z_image_turbo_int8_convrot.safetensors", "qwen_3_4b_fp8_mixed.safetensors", "ae.safetensors"}
    refused = machine.install(TURBO, "--precision", "int7")
    assert refused.code in (1, 2), refused.output
    assert "no z-image-turbo in int7" in refused.message
    assert "bf16, int8, nvfp4" in refused.message


def test_a_file_that_is_not_the_published_one_is_not_even_asked_for(split, hub, machine):
    file = split["vae"]
    write_tensors(file.parent / "new", 100_000).replace(file)
    hub.publish()
    done = machine.install(TURBO)
    assert done.code == 1, done.output
    for part in ("vae/ae.safetensors", "sha256", sha256(file), "published was"):
        assert part in done.message
    assert not hub.asked("cdn/*")
    assert not machine.models.exists()


def test_a_renamed_repository_and_an_address_with_a_slash(hub, machine):
    """The hub answers the old name with a redirect that is relative."""
    hub.renamed = {"old/Lumina": LUMINA}
    done = machine.install("old/Lumina", HF_ENDPOINT=f"{hub.url}/")
    assert done.code == 0, done.output
    assert content(machine.models / "diffusers" / "old" / "Lumina") == published_by(hub.root / LUMINA)


# --- a folder, a plain server -------------------------------------------------------------------


def by_repository(root: Path, split: dict[str, Path], to: Path) -> None:
    for owner in ("Comfy-Org", "Tongyi-MAI"):
        shutil.copytree(root / owner, to / owner)


def hub_cache(root: Path, split: dict[str, Path], to: Path) -> None:
    """As huggingface_hub keeps what it downloaded: blobs by their checksum, and links to them."""
    for owner, name in (("Comfy-Org", "z_image_turbo"), ("Tongyi-MAI", "Z-Image-Turbo")):
        cache = to / f"models--{owner}--{name}"
        (cache / "blobs").mkdir(parents=True)
        for file in (p for p in (root / owner / name).rglob("*") if p.is_file()):
            blob = cache / "blobs" / sha256(file)
            shutil.copy(file, blob)
            link = cache / "snapshots" / ("a" * 40) / file.relative_to(root / owner / name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))


def comfyui_models(root: Path, split: dict[str, Path], to: Path) -> None:
    for kind, file in split.items():
        (to / kind).mkdir(parents=True)
        shutil.copy(file, to / kind)
    shutil.copytree(root / "Tongyi-MAI" / "Z-Image-Turbo" / "tokenizer", to / QWEN)


def side_by_side(root: Path, split: dict[str, Path], to: Path) -> None:
    to.mkdir()
    for file in [*split.values(), *(root / "Tongyi-MAI" / "Z-Image-Turbo" / "tokenizer").iterdir()]:
        shutil.copy(file, to)


@pytest.mark.parametrize(
    ("layout", "plain"),
    [(by_repository, False), (hub_cache, False), (comfyui_models, False), (side_by_side, False),
     (by_repository, True), (comfyui_models, True), (side_by_side, True)],
)  # fmt: skip
def test_split_files_from_elsewhere(layout, plain, split, hub, machine):
    """From a folder, or a plain server; no server can be asked which snapshots a cache of the hub has."""
    layout(hub.root, split, hub.root / ".elsewhere")
    source = f"{hub.url}/plain/.elsewhere" if plain else str(hub.root / ".elsewhere")
    done = machine.install(TURBO, "--from", source, **({} if plain else {"HF_ENDPOINT": "http://127.0.0.1:9"}))
    assert done.code == 0, done.output
    assert_turbo(machine, split, hub.root)
    assert not hub.asked("api/*")


@pytest.mark.parametrize("plain", [False, True], ids=["folder", "server"])
@pytest.mark.parametrize("sizes", [(300_000,), (200_000, 200_000, 100_000)], ids=["one file", "shards"])
def test_a_model_folder_from_elsewhere(sizes, plain, hub, machine):
    shutil.rmtree(hub.root / LUMINA)
    write_lumina(hub.root, transformer=sizes)
    source = f"{hub.url}/plain" if plain else str(hub.root)
    done = machine.install("lumina-image-2", "--from", source)
    assert done.code == 0, done.output
    assert content(machine.lumina) == published_by(hub.root / LUMINA)
    assert {kept["evidence"] for kept in manifest(machine)["files"].values()} == {"size only"}


def test_a_damaged_file_from_elsewhere(split, hub, machine):
    """Whoever serves it: the published checksum decides."""
    with split["text_encoders"].open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"damaged")
    for source in (str(hub.root), f"{hub.url}/plain"):
        done = machine.install(TURBO, "--from", source)
        assert done.code == 1, done.output
        for part in ("qwen_3_4b.safetensors", "sha256", "published is", "Nothing of it was kept"):
            assert part in done.message
        assert not list(machine.models.glob("text_encoders/*.safetensors*"))


@pytest.mark.parametrize("source", ["nowhere", "http://127.0.0.1:9", "{url}/plain/empty", "{root}/empty"])
def test_a_source_that_has_nothing(source, hub, machine):
    (hub.root / "empty").mkdir()
    source = source.format(url=hub.url, root=hub.root)
    done = machine.install("lumina-image-2", "--from", source)
    assert done.code in (1, 2), done.output
    assert source.removeprefix("http://").partition("/plain")[0] in done.message
    assert "Traceback" not in done.output
    assert content(machine.home) == {}


# --- what is here already -----------------------------------------------------------------------


@pytest.mark.parametrize("model", ["lumina-image-2", TURBO])
def test_a_second_install_changes_nothing(model, split, hub, machine):
    assert machine.install(model).code == 0
    before = {path: when for path, when in times(machine.home).items() if Path(path).is_file()}
    sent = hub.bodies
    hub.requests.clear()
    done = machine.install(model)
    assert done.code == 0, done.output
    assert {path: when for path, when in times(machine.home).items() if Path(path).is_file()} == before
    assert not hub.asked("cdn/*")
    assert hub.bodies - sent < 1000, "model_index.json, which says what belongs to a model, and nothing else"


# --- how much memory it takes, and how many connections -----------------------------------------


def test_memory_and_connections(root, tmp_path):
    """A file of 160 MB, in less than 100 MB of memory with all libraries."""
    write_lumina(root, transformer=(160_000_000,))
    (tmp_path / "home").mkdir()
    with Hub(root) as hub:
        machine = Machine(tmp_path / "home", hub.url)
        command = [sys.executable, "-c", PEAK, *CANDELA, *INSTALL]
        done = subprocess.run(command, env=machine.variables(), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split("peak")[1]) < 100_000, "KiB"
        assert 4 <= hub.most_connections <= 10
        assert content(machine.lumina) == published_by(hub.root / LUMINA)
