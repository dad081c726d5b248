"""A ComfyUI on disk is found wherever people keep it, on any platform, and its model folders are those that it uses."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from candela.errors import InstallError
from candela.install.comfyui import open_comfyui, search
from candela.install.places import desktop_configuration, desktop_program, usual_places
from tests.install.environments import checkout, give


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch) -> Path:
    """An empty home, and nothing said about any ComfyUI."""
    for name in ("COMFYUI_DIR", "COMFYUI_PYTHON", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_in(folder: Path, path: str) -> Path:
    (folder / path).parent.mkdir(parents=True)
    (folder / path).touch()
    return folder / path


def base(folder: Path) -> Path:
    for name in ("custom_nodes", "models"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.mark.parametrize("given", ["", "custom_nodes", "models", "..", "../Link"])
def test_a_checkout_by_its_folder_or_one_beside_it(machine, given):
    folder = checkout(machine / "ComfyUI")
    (machine / "Link").symlink_to(folder)
    found = open_comfyui(folder / given)
    assert (found.folder, found.core, found.version) == (folder, folder, "0.26.0")
    assert found.custom_nodes == folder / "custom_nodes"


def test_model_folders_are_the_core_s_and_new_files_go_where_guides_say(machine):
    folder = checkout(machine / "ComfyUI")
    models = open_comfyui(folder).models
    below = {kind: [path.relative_to(folder / "models").as_posix() for path in paths] for kind, paths in models.items()}
    assert below == {
        "checkpoints": ["checkpoints"], "diffusers": ["diffusers"], "diffusion_models": ["diffusion_models", "unet"],
        "loras": ["loras"], "text_encoders": ["text_encoders", "clip"], "vae": ["vae"], "vae_approx": ["vae_approx"],
    }  # fmt: skip


def test_what_is_no_comfyui_is_told_with_what_is_there(machine):
    for name in "abcdefghij":
        (machine / "home" / name).touch()
    with pytest.raises(InstallError) as caught:
        open_comfyui(machine / "home")
    message = str(caught.value)
    assert message.startswith(f"{machine / 'home'} is no ComfyUI. Looked for main.py with comfyui_version.py or comfy/")
    assert "It holds a, b, c, d, e, f, g, h and 2 more." in message and "--comfyui DIR" in message
    (machine / "empty").mkdir()
    with pytest.raises(InstallError, match="It is empty"):
        open_comfyui(machine / "empty")
    with pytest.raises(InstallError, match=r"there is no folder .*nowhere"):
        open_comfyui(machine / "nowhere")


def test_a_script_called_main_is_not_enough(machine):
    (machine / "main.py").touch()
    with pytest.raises(InstallError, match="is no ComfyUI"):
        open_comfyui(machine)


@pytest.mark.parametrize(
    "python",
    [".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "env/python.exe", "../.venv/bin/python",
     "../venv/Scripts/python.exe", "../python_embeded/python.exe"],
)  # fmt: skip
def test_its_python_in_each_layout(machine, python):
    folder = checkout(machine / "portable" / "ComfyUI")
    path = Path(os.path.normpath(python_in(folder, python)))
    assert open_comfyui(machine / "portable").python == path
    assert open_comfyui(folder).python == path


def test_an_environment_s_python_stays_the_link_that_it_is(machine):
    folder = checkout(machine / "ComfyUI")
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to(sys.executable)
    assert open_comfyui(folder).python == folder / ".venv/bin/python"


def test_this_python_only_where_it_is_comfyui_s(machine, monkeypatch):
    folder = checkout(machine / "ComfyUI")
    assert open_comfyui(folder).python is None
    give(machine / "site", "comfyui-frontend-package", "1.35.9")
    monkeypatch.syspath_prepend(str(machine / "site"))
    assert importlib.metadata.version("comfyui-frontend-package") == "1.35.9"
    assert open_comfyui(folder).python == Path(sys.executable)
    monkeypatch.setenv("COMFYUI_PYTHON", "/opt/conda/bin/python")
    assert open_comfyui(folder).python == Path("/opt/conda/bin/python")


def test_versions_of_old_cores(machine):
    folder = checkout(machine / "ComfyUI")
    (folder / "comfyui_version.py").unlink()
    assert open_comfyui(folder).version == ""
    (folder / "pyproject.toml").write_text('[project]\nname = "ComfyUI"\nversion = "0.3.7"\n')
    assert open_comfyui(folder).version == "0.3.7"


EXTRA = """
mine:
    base_path: $SHELF/sd
    is_default: true
    checkpoints: models/Stable-diffusion
    unet: |
        first
        second

    text_encoders: ~/not-expanded
old:
    clip: clips
    vae: /abs/vae/
nothing:
again:
    base_path: ~/more
    diffusion_models: |
        unets
        unets
    upscale_models: up
"""


def test_extra_model_paths_as_comfyui_reads_them(machine, monkeypatch):
    folder = checkout(machine / "ComfyUI")
    monkeypatch.setenv("SHELF", "/shelf")
    (folder / "extra_model_paths.yaml").write_text(EXTRA)
    models = {kind: list(map(str, paths)) for kind, paths in open_comfyui(folder).models.items()}
    own = f"{folder}/models"
    assert models["checkpoints"] == ["/shelf/sd/models/Stable-diffusion", f"{own}/checkpoints"]
    assert models["diffusion_models"] == [
        "/shelf/sd/second", "/shelf/sd/first", f"{own}/diffusion_models", f"{own}/unet", f"{machine}/home/more/unets",
    ]  # fmt: skip
    assert models["text_encoders"] == [
        "/shelf/sd/~/not-expanded", f"{own}/text_encoders", f"{own}/clip", f"{folder}/clips",
    ]  # fmt: skip
    assert models["vae"] == [f"{own}/vae", "/abs/vae"]


@pytest.mark.parametrize("text", ["- a list", "mine: {vae: [a, b]}", "mine: text", "{"])
def test_extra_model_paths_that_comfyui_could_not_read(machine, text):
    folder = checkout(machine / "ComfyUI")
    (folder / "extra_model_paths.yaml").write_text(text)
    with pytest.raises(InstallError, match=r"extra_model_paths\.yaml.* cannot be read: .*correct it, or move it away"):
        open_comfyui(folder)


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file_of_extra_paths_says_nothing(machine, text):
    folder = checkout(machine / "ComfyUI")
    (folder / "extra_model_paths.yaml").write_text(text)
    assert open_comfyui(folder).models["vae"] == (folder / "models/vae",)


def test_comfyui_desktop_s_folder_wherever_it_is_and_its_extra_paths(machine):
    folder = base(machine / "elsewhere" / "Comfy")
    other = base(machine / "other")
    file = Path(desktop_configuration(sys.platform, machine / "home", os.environ))
    file.parent.mkdir(parents=True)
    file.write_text(f"desktop:\n  base_path: {folder}\n  is_default: true\n  vae: my-vae\n")
    (found,) = search()
    assert (found.folder, found.core, found.version) == (folder, None, "")
    assert found.models["vae"][0] == folder / "my-vae"
    assert open_comfyui(other).models["vae"] == (other / "models/vae",), "another folder's, and none of Desktop's"


def test_search_finds_each_once_and_the_nearest_first(machine, monkeypatch):
    assert search() == []
    at_home = checkout(machine / "home" / "ComfyUI")
    near = checkout(machine / "work" / "ComfyUI")
    (machine / "home" / "comfyui").symlink_to(at_home)
    monkeypatch.chdir(near / "models" / "diffusers")
    assert [one.folder for one in search()] == [near, at_home]
    monkeypatch.setenv("COMFYUI_DIR", str(at_home))
    assert [one.folder for one in search()] == [at_home], "what is named is the only one"
    monkeypatch.setenv("COMFYUI_DIR", str(machine / "work"))
    assert [one.folder for one in search()] == [near]
    monkeypatch.setenv("COMFYUI_DIR", str(machine / "home" / "nowhere"))
    with pytest.raises(InstallError, match=r"COMFYUI_DIR is set to .*nowhere: there is no folder"):
        search()


def test_usual_places_on_windows():
    home = PureWindowsPath(r"C:\Users\ada")
    environ = {"APPDATA": r"C:\Users\ada\AppData\Roaming", "LOCALAPPDATA": r"C:\Users\ada\AppData\Local"}
    places = list(map(str, usual_places("win32", home, environ, PureWindowsPath(r"D:\work\x"))))
    assert places[:3] == ["D:\\work\\x", "D:\\work", "D:\\"]
    assert {
        r"C:\Users\ada\ComfyUI", r"C:\Users\ada\Documents\ComfyUI", r"C:\Users\ada\Desktop\ComfyUI_windows_portable",
        r"C:\Users\ada\Downloads\ComfyUI_windows_portable", r"C:\ComfyUI_windows_portable",
        r"E:\ComfyUI_windows_portable", r"D:\ComfyUI", r"C:\Users\ada\AppData\Roaming\StabilityMatrix\Packages",
    } <= set(places)  # fmt: skip
    assert not [place for place in places if "/" in place] and len(set(places)) == len(places)
    assert str(desktop_configuration("win32", home, environ)) == (
        r"C:\Users\ada\AppData\Roaming\ComfyUI\extra_models_config.yaml"
    )
    assert str(desktop_program("win32", environ)) == (
        r"C:\Users\ada\AppData\Local\Programs\@comfyorgcomfyui-electron\resources\ComfyUI"
    )


def test_usual_places_on_macos_and_linux():
    home = PurePosixPath("/Users/ada")
    places = list(map(str, usual_places("darwin", home, {}, home / "Desktop")))
    assert places[0] == "/Users/ada/Desktop" and "/Users/ada/Documents/ComfyUI" in places
    assert "/opt/ComfyUI" not in places
    assert str(desktop_configuration("darwin", home, {})) == (
        "/Users/ada/Library/Application Support/ComfyUI/extra_models_config.yaml"
    )
    assert str(desktop_program("darwin", {})) == "/Applications/ComfyUI.app/Contents/Resources/ComfyUI"
    places = list(map(str, usual_places("linux", PurePosixPath("/home/ada"), {}, PurePosixPath("/"))))
    assert {"/home/ada/comfy/ComfyUI", "/opt/ComfyUI", "/workspace/ComfyUI", "/root/ComfyUI"} <= set(places)
    assert desktop_program("linux", {}) is None
