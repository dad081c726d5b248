"""The nodes go into a ComfyUI and out of it again, with a real pip in a real environment, and without a network."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import candela
from candela.checkpoints.manifest import changing_manifest, read_manifest
from candela.cli.main import app
from candela.errors import Conflict, InstallError, SourceError
from candela.install.comfyui import open_comfyui
from candela.install.dependencies import Packages, check_brought, read_requirements
from candela.install.environment import read_environment
from candela.install.nodes import install_nodes, plan_nodes, remove_nodes
from candela.install.pack import FOLDERS, TOP, find_pack, sha256
from candela.install.pip import failure
from tests.install import environments
from tests.install.environments import REPOSITORY, give, listing, own_wheels, times, wheel

PACKAGES = {"diffusers", "transformers", "huggingface-hub", "gguf", "sentencepiece"}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("template") / ".venv"
    site = environments.new_environment(folder)
    for name, version in environments.BROUGHT.items():
        give(site, name, version)
    return folder


@pytest.fixture
def comfyui(tmp_path, template, monkeypatch) -> Path:
    """A ComfyUI with its own Python, whose pip knows the wheels of tmp_path/index and no network."""
    folder = environments.checkout(tmp_path / "ComfyUI")
    shutil.copytree(template, folder / ".venv", symlinks=True)
    monkeypatch.setenv("CANDELA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def index(tmp_path) -> Path:
    own_wheels(tmp_path / "index")
    return tmp_path / "index"


def site_of(comfyui: Path) -> Path:
    (site,) = comfyui.glob(".venv/lib/python*/site-packages")
    return site


def installed(comfyui: Path) -> dict[str, str]:
    python = open_comfyui(comfyui).python
    assert python is not None
    return {name: one.version for name, one in read_environment(python).distributions.items()}


def plan(comfyui: Path):
    return plan_nodes(open_comfyui(comfyui))


def recorded():
    (nodes,) = read_manifest().nodes
    return nodes


def test_planning_and_reading_change_nothing(comfyui, index, tmp_path):
    before = times(tmp_path)
    planned = plan(comfyui)
    assert planned.changes and planned.packages.versions.keys() >= PACKAGES and not planned.packages.upgraded
    assert times(tmp_path) == before


def test_installed_as_a_clone_looks_a_second_time_touches_nothing_and_removed_without_a_trace(comfyui, index):
    before, had = listing(comfyui), installed(comfyui)
    install_nodes(plan(comfyui))
    folder = comfyui / "custom_nodes" / "candela"
    assert {path.name for path in folder.iterdir()} == {
        "__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "example_workflows", "locales", "src",
    }  # fmt: skip
    for path in ("__init__.py", "locales/fr/nodeDefs.json", "src/candela/demo/model/model_index.json"):
        assert (folder / path).read_bytes() == (REPOSITORY / path).read_bytes()
    assert not list(folder.rglob("__pycache__"))
    assert installed(comfyui).items() >= {**had, **own_wheels(index)}.items()
    assert recorded().packages == own_wheels(index) and recorded().version == candela.__version__

    was = times(comfyui)
    again = plan(comfyui)
    assert not again.changes
    install_nodes(again)
    assert times(comfyui) == was

    subprocess.run([sys.executable, "-m", "compileall", "-q", folder], check=True)  # as a run of ComfyUI does
    subprocess.run([comfyui / ".venv/bin/python", "-c", "import diffusers"], check=True)
    removed = remove_nodes(recorded())
    assert not removed.edited and not removed.needed
    assert listing(comfyui) == before
    assert not (comfyui.parent / "home" / "manifest.json").exists()


def test_an_upgrade_is_planned_by_both_versions_and_taken_back(comfyui, index):
    wheel(index, "transformers", "4.57.1")
    pip = [comfyui / ".venv/bin/python", "-m", "pip", "install", "-q", "--no-compile", "transformers==4.57.1"]
    subprocess.run(pip, check=True)
    before = listing(site_of(comfyui))
    planned = plan(comfyui)
    assert planned.packages.upgraded == {"transformers": "4.57.1"}
    assert planned.packages.versions["transformers"] == "5.18"
    install_nodes(planned)
    assert installed(comfyui)["transformers"] == "5.18"
    assert recorded().upgraded == {"transformers": "4.57.1"}
    remove_nodes(recorded())
    after = listing(site_of(comfyui))
    # pip compiles itself where it runs without our settings; what it recorded of the package is all the same
    assert {k: v for k, v in after.items() if "__pycache__" not in k} == {
        k: v for k, v in before.items() if "__pycache__" not in k
    }


def test_what_an_earlier_pack_brought_and_a_later_one_upgraded_goes_for_good(comfyui, index):
    before = listing(comfyui)
    install_nodes(plan(comfyui))
    wheel(index, "gguf", "0.20")
    (comfyui / "custom_nodes/candela/LICENSE").unlink()
    install_nodes(replace(plan(comfyui), packages=Packages({"gguf": "0.20"}, {"gguf": "0.19"})))
    assert installed(comfyui)["gguf"] == "0.20" and recorded().upgraded == {}
    remove_nodes(recorded())
    assert listing(comfyui) == before


def test_an_older_version_that_is_offered_no_more_stays_as_it_is_and_so_does_what_it_needs(comfyui, index):
    wheel(index, "transformers", "5.18", "typer")
    give(site_of(comfyui), "transformers", "4.57.1")
    install_nodes(plan(comfyui))
    needed = remove_nodes(recorded()).needed
    assert needed.keys() == {"transformers", "typer"}
    assert "transformers 4.57.1 cannot be put back: pip's package index has only 5.18 of" in needed["transformers"]
    assert needed["typer"] == "transformers 5.18 requires typer"
    assert not read_manifest().nodes and "diffusers" not in installed(comfyui)


def test_an_index_that_cannot_be_reached_when_removing_is_told_and_removing_goes_on_later(comfyui, index, monkeypatch):
    wheel(index, "transformers", "4.57.1")
    give(site_of(comfyui), "transformers", "4.57.1")
    install_nodes(plan(comfyui))
    with monkeypatch.context() as offline:
        offline.delenv("PIP_NO_INDEX")
        offline.delenv("PIP_FIND_LINKS")
        offline.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        offline.setenv("PIP_RETRIES", "1")
        with pytest.raises(SourceError, match="cannot reach its package index"):
            remove_nodes(recorded())
    assert installed(comfyui)["transformers"] == "5.18" and recorded().upgraded
    remove_nodes(recorded())
    assert installed(comfyui)["transformers"] == "4.57.1" and not read_manifest().nodes


@pytest.mark.parametrize("who", ["distribution", "custom node"])
def test_a_conflict_names_both_requirements_and_changes_nothing(comfyui, index, who):
    give(site_of(comfyui), "transformers", "4.57.1")
    if who == "distribution":
        give(site_of(comfyui), "comfyui-other", "1.2", "transformers<5", "pillow; extra == 'all'")
        name = "comfyui-other 1.2"
    else:
        other = comfyui / "custom_nodes" / "other"
        other.mkdir()
        (other / "requirements.txt").write_text("# pinned\n-r more.txt\ntransformers<5 # not yet\n")
        name = "custom_nodes/other (requirements.txt)"
    before, was = listing(comfyui), times(comfyui)
    with pytest.raises(Conflict) as caught:
        plan(comfyui)
    assert (
        f"{name} requires transformers<5; Candela requires transformers>=5.18; installed: transformers 4.57.1"
        in str(caught.value)
    )
    assert "Nothing was changed" in str(caught.value)
    assert listing(comfyui) == before and times(comfyui) == was
    assert not read_manifest().nodes


def test_a_conflict_of_what_a_requirement_needs_names_that(comfyui, index):
    wheel(index, "diffusers", "0.42", "words>=2026")
    wheel(index, "words", "2026.1")
    give(site_of(comfyui), "words", "2024.1")
    give(site_of(comfyui), "tokens", "3", "words<2025")
    with pytest.raises(
        Conflict, match=r"tokens 3 requires words<2025; diffusers 0\.42 requires words>=2026; installed"
    ):
        plan(comfyui)


def test_torch_is_kept_whatever_asks_for_another(comfyui, index):
    wheel(index, "diffusers", "0.42", "torch>=3")
    wheel(index, "torch", "3.0")
    was = times(comfyui)
    with pytest.raises(Conflict) as caught:
        plan(comfyui)
    assert "diffusers 0.42 requires torch>=3" in str(caught.value)
    assert "ComfyUI has torch 2.11.0, which is kept" in str(caught.value)
    assert times(comfyui) == was


def test_an_index_that_cannot_be_reached_is_no_conflict(comfyui, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(SourceError, match=r"cannot reach its package index.*Nothing was changed.*Check the connection"):
        plan(comfyui)


def test_an_index_without_a_package_is_told_with_its_name(comfyui, tmp_path):
    own_wheels(tmp_path / "index", without="gguf")
    with pytest.raises(SourceError, match=r"no version at all of gguf>=0\.19.*PIP_NO_INDEX"):
        plan(comfyui)


def test_an_environment_without_pip_is_served_by_ours(comfyui, index):
    for path in site_of(comfyui).glob("pip*"):
        shutil.rmtree(path)
    before = listing(comfyui)
    install_nodes(plan(comfyui))
    assert installed(comfyui)["diffusers"] == "0.42" and "pip" not in installed(comfyui)
    remove_nodes(recorded())
    assert listing(comfyui) == before


def test_without_any_pip_the_message_says_how_to_get_one(comfyui, index, monkeypatch):
    shutil.rmtree(next(site_of(comfyui).glob("pip-*")))
    own = importlib.metadata.version
    missing = importlib.metadata.PackageNotFoundError("pip")

    def without_pip(name):  # an installer of this Candela, as `uv tool install` makes it
        if name == "pip":
            raise missing
        return own(name)

    monkeypatch.setattr(importlib.metadata, "version", without_pip)
    with pytest.raises(InstallError, match=r"has no pip .*bin/python -m ensurepip"):
        plan(comfyui)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch": "2.4.1"}, r"Candela requires torch>=2\.8; torch 2\.4\.1 is installed in ComfyUI's Python"),
        ({"torch": None}, r"Candela requires torch>=2\.8; there is no torch in ComfyUI's Python.*Does ComfyUI start\?"),
        ({"numpy": "1.24"}, r"Candela requires numpy>=1\.26; numpy 1\.24 is installed.*Candela never changes it"),
    ],
)
def test_what_comfyui_brings_is_never_installed(comfyui, index, change, said):
    ((name, version),) = change.items()
    shutil.rmtree(next(site_of(comfyui).glob(f"{name}-*.dist-info")))
    if version:
        give(site_of(comfyui), name, version)
    with pytest.raises(InstallError, match=said):
        plan(comfyui)


def test_a_python_that_is_too_old(comfyui):
    environment = read_environment(comfyui / ".venv/bin/python")
    old = replace(environment, markers={**environment.markers, "python_full_version": "3.10.9"})
    requirements = read_requirements(REPOSITORY / "pyproject.toml", REPOSITORY / "requirements.txt")
    with pytest.raises(InstallError, match=r"ComfyUI's Python is 3\.10\.9 .*Candela needs >=3\.11"):
        check_brought(old, requirements, comfyui)


def test_a_python_that_does_not_run(comfyui):
    (comfyui / ".venv/bin/python").unlink()
    (comfyui / ".venv/bin/python").write_text("not a program")
    (comfyui / ".venv/bin/python").chmod(0o755)
    with pytest.raises(InstallError, match=r"does not run: .*COMFYUI_PYTHON="):
        plan(comfyui)


def test_an_old_core_is_refused_with_the_way_to_update_it(comfyui):
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.3.40"\n')
    with pytest.raises(InstallError, match=r"is 0\.3\.40; the nodes need >=0\.8\.0.*git -C .*ComfyUI pull"):
        plan(comfyui)


@pytest.mark.parametrize("kind", ["clone", "clone of another name", "link", "shim"])
def test_a_candela_that_is_there_is_left_alone(comfyui, index, tmp_path, kind):
    folder = comfyui / "custom_nodes" / ("ComfyUI-Candela" if kind == "clone of another name" else "candela")
    if kind == "link":
        folder.symlink_to(REPOSITORY)
    else:
        folder.mkdir()
        (folder / "__init__.py").write_text("from candela.comfyui import comfy_entrypoint\n")
    if kind.startswith("clone"):
        shutil.copy(REPOSITORY / "pyproject.toml", folder)
    was = times(comfyui)
    planned = plan(comfyui)
    assert planned.foreign == folder and not planned.changes
    install_nodes(planned)
    assert times(comfyui) == was and not read_manifest().nodes


def test_another_pack_s_project_file_is_none_of_ours(comfyui, index):
    (comfyui / "custom_nodes" / "other").mkdir()
    (comfyui / "custom_nodes" / "other" / "pyproject.toml").write_text("[project\nname = ")
    assert plan(comfyui).foreign is None


def test_a_file_that_the_user_changed_stays_and_is_named(comfyui, index):
    install_nodes(plan(comfyui))
    edited = comfyui / "custom_nodes/candela/locales/fr/nodeDefs.json"
    edited.write_text("{}")
    assert plan(comfyui).edited == ("locales/fr/nodeDefs.json",)
    assert remove_nodes(recorded()).edited == (edited,)
    assert [path for path in (comfyui / "custom_nodes/candela").rglob("*") if path.is_file()] == [edited]


def test_a_package_that_somebody_needs_now_stays_and_what_it_needs_too(comfyui, index):
    wheel(index, "diffusers", "0.42", "regex>=2026")
    wheel(index, "regex", "2026.1")
    install_nodes(plan(comfyui))
    give(site_of(comfyui), "comfyui-other", "1.2", "diffusers>=0.30")
    node = comfyui / "custom_nodes" / "gguf-loader"
    node.mkdir()
    (node / "requirements.txt").write_text("gguf\n")
    removed = remove_nodes(recorded())
    assert removed.needed == {
        "diffusers": "comfyui-other 1.2 requires diffusers>=0.30",
        "regex": "diffusers 0.42 requires regex>=2026",
        "gguf": "custom_nodes/gguf-loader (requirements.txt) requires gguf",
    }
    assert {"diffusers", "regex", "gguf"} <= installed(comfyui).keys() and "transformers" not in installed(comfyui)


def test_a_package_that_somebody_upgraded_since_stays(comfyui, index):
    install_nodes(plan(comfyui))
    shutil.rmtree(next(site_of(comfyui).glob("gguf-*.dist-info")))
    give(site_of(comfyui), "gguf", "9.0")
    remove_nodes(recorded())
    assert installed(comfyui)["gguf"] == "9.0" and "diffusers" not in installed(comfyui)


def test_an_older_pack_s_files_go(comfyui, index):
    install_nodes(plan(comfyui))
    folder = comfyui / "custom_nodes/candela"
    (folder / "old").mkdir()
    shutil.copy(folder / "LICENSE", folder / "old" / "nodes.py")
    (folder / "src/candela/comfyui/nodes.py").write_text("# of before")
    with changing_manifest() as manifest:
        (nodes,) = manifest.nodes
        files = {**nodes.files, "old/nodes.py": nodes.files["LICENSE"]}
        files["src/candela/comfyui/nodes.py"] = sha256(folder / "src/candela/comfyui/nodes.py")
        manifest.nodes = [replace(nodes, files=files, version="0.0.9")]
    planned = plan(comfyui)
    assert (planned.write, planned.obsolete, planned.edited) == (
        ("src/candela/comfyui/nodes.py",), ("old/nodes.py",), (),
    )  # fmt: skip
    install_nodes(planned)
    assert not (folder / "old").exists() and not plan(comfyui).changes
    assert (folder / "src/candela/comfyui/nodes.py").read_bytes() == find_pack().files[planned.write[0]].read_bytes()


KILLED = """
import os, signal, sys
from candela.install import nodes
from candela.install.comfyui import open_comfyui
left, copy = int(sys.argv[2]), nodes.os.replace
def replace(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    copy(*arguments)
plan = nodes.plan_nodes(open_comfyui(sys.argv[1]))
if left >= 0:
    nodes.os.replace = replace
nodes.install_nodes(plan)
"""


def test_a_killed_run_can_be_finished_and_can_be_removed(comfyui, index):
    before, files = listing(comfyui), 40
    # the manifest's own replacements come first: one when it is written
    run = subprocess.run([sys.executable, "-c", KILLED, comfyui, str(files + 1)], capture_output=True, text=True)
    assert run.returncode == -9, run.stderr
    written = [path for path in (comfyui / "custom_nodes/candela").rglob("*") if path.is_file()]
    assert len(written) == files + 1, "the last of them half copied"
    saved = json.dumps(read_manifest().as_json())
    plan_now = plan(comfyui)
    assert plan_now.changes and not plan_now.foreign and not plan_now.edited
    install_nodes(plan_now)
    assert not plan(comfyui).changes and not list(comfyui.rglob("*.candela-part"))
    assert {name for name, digest in recorded().files.items() if " " in digest} == set()
    remove_nodes(recorded())
    assert listing(comfyui) == before

    subprocess.run([sys.executable, "-c", KILLED, comfyui, str(files + 1)], capture_output=True)
    assert json.dumps(read_manifest().as_json()) == saved
    remove_nodes(recorded())
    assert listing(comfyui) == before


def test_a_full_disk_is_told_as_one(comfyui, index, monkeypatch):
    import errno

    from candela.errors import NoSpace

    planned = plan(comfyui)

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(NoSpace, match=r"No space left on device.*run the same command again"):
        install_nodes(planned)


@pytest.mark.parametrize(
    ("output", "kind", "said"),
    [
        ("error: externally-managed-environment\n\nThis is Debian", InstallError, "PIP_BREAK_SYSTEM_PACKAGES=1"),
        ("WARNING: x\nERROR: [Errno 13] Permission denied: '/usr/lib'", InstallError, "Permission denied: '/usr/lib'"),
        ("ERROR: Could not find a version that satisfies the requirement gguf>=9 (from versions: 0.1, 0.2)",
         SourceError, "only 0.1, 0.2 of gguf>=9"),
        ("WARNING: Retrying (Retry(total=0)) after connection broken by 'SSLError(CertificateError())': /simple/gguf/\n"
         "ERROR: Could not find a version that satisfies the requirement gguf (from versions: none)",
         SourceError, "cannot reach its package index"),
    ],
)  # fmt: skip
def test_what_pip_says_is_told_as_ours(comfyui, output, kind, said):
    error = failure(output, read_environment(comfyui / ".venv/bin/python"))
    assert isinstance(error, kind) and said in str(error)


def test_from_a_wheel_as_from_a_clone(tmp_path):
    """A wheel holds the whole pack, and finds it. Building one needs setuptools from an index."""
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-c", "-o", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--retries", "0", "--no-deps", "-w", tmp_path, source]
    built = subprocess.run(build, capture_output=True, text=True)
    if "Could not find a version that satisfies the requirement setuptools" in built.stderr:
        pytest.skip("NOT TESTED: no package index can be reached, so no wheel could be built with setuptools")
    assert built.returncode == 0, built.stderr
    (file,) = tmp_path.glob("*.whl")
    site = environments.new_environment(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", file], check=True)
    (site / "ours.pth").write_text(str(Path(importlib.metadata.distribution("packaging").locate_file(""))))
    script = (
        "import json, candela\nfrom candela.install.pack import find_pack, sha256\n"
        "print(candela.__file__)\nprint(json.dumps({k: sha256(v) for k, v in find_pack().files.items()}))"
    )
    run = subprocess.run([python, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    where, found = run.stdout.splitlines()
    assert where.startswith(str(site))
    pack = (*TOP, *(f"{folder}/" for folder in (*FOLDERS, "src/candela")))
    copied = [path for path in source.rglob("*") if path.is_file() and "build" not in path.relative_to(source).parts]
    expected = {path.relative_to(source).as_posix(): sha256(path) for path in copied}
    assert json.loads(found) == {name: digest for name, digest in expected.items() if name.startswith(pack)}


def test_a_dry_run_shows_the_plan_where_packages_cannot_be_looked_up(comfyui, tmp_path):
    """There is no index here."""
    before = times(tmp_path)
    done = CliRunner().invoke(app, ["install", "demo", "--comfyui", str(comfyui), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert f"the nodes in {comfyui} were not planned: " in done.stdout
    refused = CliRunner().invoke(app, ["install", "demo", "--comfyui", str(comfyui), "--yes"])
    assert refused.exit_code == 1 and refused.stdout == ""
    assert times(tmp_path) == before
