"""The house holds: imports point down only, and the public API is what `__all__` says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import candela

SOURCE = Path(candela.__file__).parent
# Each layer may import itself and those after it; demo, record, pictures, rgb and regular are leaves that any may use.
LAYERS = [
    "cli",
    "comfyui",
    "server",
    "install",
    "bench",
    "engine",
    "families",
    "checkpoints",
    "demo",
    "record",
    "pictures",
    "rgb",
    "regular",
    "errors",
]
DOORS = {"cli", "comfyui", "server"}
MODULES = sorted(SOURCE.rglob("*.py"))


def layer_of(dotted: str) -> str | None:
    """`candela.Engine` is of the engine's layer as much as `candela.engine` is."""
    parts = dotted.split(".")
    if parts[0] != "candela" or len(parts) == 1:
        return None
    return candela._HOMES[parts[1]].split(".")[1] if parts[1] in candela._HOMES else parts[1]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            assert node.module
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path):
    here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if here == "__init__":
        return  # the package's front page names everything
    if here == "__main__":
        here = "cli"
    for name in imported(path):
        layer = layer_of(name)
        if layer in LAYERS and layer != here:
            assert LAYERS.index(layer) > LAYERS.index(here), f"{here} imports {name}, which lies above it"
            assert not (here in DOORS and layer in DOORS), f"the door {here} imports the door {layer}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_doors_know_their_frameworks(path):
    here = path.relative_to(SOURCE).parts[0]
    roots = {name.split(".")[0] for name in imported(path)}
    allowed = {
        "comfyui": {"comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server"},
        "server": {"fastapi", "starlette", "uvicorn"},
        "cli": {"typer", "rich"},
    }
    for door, frameworks in allowed.items():
        if here != door:
            assert not roots & frameworks, f"{path} imports {roots & frameworks}, which only {door} may"


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_engine_runs_without_any_door():
    assert not loaded_by("import candela.engine") & {"typer", "comfy", "fastapi", "starlette", "flask"}


def test_help_imports_nothing_heavy():
    code = (
        "from typer.testing import CliRunner\nfrom candela.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0"
    )
    heavy = {"torch", "numpy", "PIL", "diffusers", "transformers", "huggingface_hub"}
    assert not loaded_by(code) & heavy
    assert not loaded_by("import candela") & heavy


def test_public_api_is_all():
    assert set(dir(candela)) == set(candela.__all__)
    assert len(set(candela.__all__)) == len(candela.__all__)
    for name in candela.__all__:
        assert getattr(candela, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = candela.Nonsense


def test_every_error_is_public_and_in_one_tree():
    from candela import errors

    tree = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(error, (errors.CandelaError, errors.CandelaWarning)) for error in tree)
    assert {error.__name__ for error in tree} <= set(candela.__all__)
    for error in tree:
        assert error.__name__ in (errors.__doc__ or ""), "the tree in the docstring is the documentation"
