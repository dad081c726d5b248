"""The real shell against a real server: what is installed, used, compared and taken away again."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from candela.checkpoints.catalogue import DEMO_FOLDER
from tests.conftest import STAR, pixels
from tests.install.conftest import Machine, content, sha256, times, write_lumina
from tests.install.hub import Hub
from tests.install.publish import publish_turbo

TRANSFORMER = "models/diffusion_models/z_image_turbo_bf16.safetensors"
ENCODER = "models/text_encoders/qwen_3_4b.safetensors"
VAE = "models/vae/ae.safetensors"
TOKENIZER = "models/text_encoders/qwen_3_4b_tokenizer/tokenizer.json"


@pytest.fixture(scope="module")
def turbo_root(tmp_path_factory) -> Path:
    """The demo, published as Z-Image Turbo and, with another transformer, as Z-Image Base."""
    root = tmp_path_factory.mktemp("hub")
    publish_turbo(root)
    base = root / "Comfy-Org/z_image/split_files/diffusion_models/z_image_bf16.safetensors"
    base.parent.mkdir(parents=True)
    shutil.copy(root / "Comfy-Org/z_image_turbo/split_files/diffusion_models/z_image_turbo_bf16.safetensors", base)
    (checksums := root / "checksums.json").write_text(checksums.read_text())
    return root


@pytest.fixture(scope="module")
def turbo_hub(turbo_root):
    with Hub(turbo_root) as running:
        yield running


@pytest.fixture
def user(tmp_path, turbo_hub, turbo_root) -> Machine:
    (tmp_path / "home").mkdir()
    checksums = {"CANDELA_TEST_CHECKSUMS": str(turbo_root / "checksums.json")}
    return Machine(tmp_path / "home", turbo_hub.url, environment=checksums)


@pytest.fixture
def data(user) -> Path:
    return user.home / "data"


def install(user: Machine, model: str = "z-image-turbo", *options: str):
    done = user.install(model, *options)
    assert done.code == 0, done.output
    return done


def test_what_was_installed_draws_the_same_picture_by_its_name(user, data, star_pixels):
    done = install(user)
    assert "published checksum" in done.output and "candela generate" in done.output
    assert {TRANSFORMER, ENCODER, VAE, TOKENIZER} <= content(data).keys()
    out = user.home / "star.png"
    drawn = user.run("generate", STAR.prompt[0], "--seed", "15", "--model", "z-image-turbo", "--out", out)
    assert drawn.code == 0, drawn.output
    assert pixels(Image.open(out)) == star_pixels
    assert "model:           z-image-turbo" in user.run("show", out).output
    swapped = user.run("identify", data / TRANSFORMER, data / ENCODER, data / VAE)
    assert "a whole z-image model" in swapped.output


def test_models_says_where_it_is_and_when_it_was_compared(user, data):
    install(user)
    report = json.loads(user.run("models", "--json").output)
    (one,) = [model for model in report["models"] if model["model"] == "z-image-turbo"]
    assert one["folder"] == str(data / "models") and str(data / VAE) in one["files"]
    assert one["bytes"] == sum((data / file).stat().st_size for file in (TRANSFORMER, ENCODER, VAE))
    assert one["checked"].startswith("20") and one["problem"] == ""
    table = user.run("models").output
    assert "z-image-turbo" in table and str(data / "models") in table
    os.unlink(data / VAE)
    assert "cannot be used: z-image-turbo" in user.run("models").output


def test_a_dry_run_and_a_question_that_nobody_answers_change_nothing(user, data):
    done = user.run("install", "z-image-turbo", "--comfyui", "none", "--dry-run")
    assert done.code == 0 and "9.9 MB of 9.9 MB" in done.output
    asked = user.run("install", "z-image-turbo", "--comfyui", "none")
    assert asked.code == 2 and "add --yes" in asked.message
    assert not data.exists()


def test_removing_leaves_nothing_and_nothing_of_others(user, data):
    before = content(user.home)
    install(user)
    install(user, "z-image")
    assert "another installed model needs it" in user.run("uninstall", "z-image-turbo").output
    assert {ENCODER, VAE, TOKENIZER} <= content(data).keys() and TRANSFORMER not in content(data)
    assert user.run("verify", "z-image").code == 0
    done = user.run("uninstall", "z-image")
    assert done.code == 0, done.output
    assert content(user.home) == before and not (data / "models").exists()
    again = user.run("uninstall", "z-image")
    assert again.code == 2 and "was not installed by Candela" in again.message


def test_a_user_s_own_file_is_used_and_stays(user, data, turbo_root, turbo_hub):
    own = data / "models" / "vae" / "flux" / "ae.safetensors"  # deeper than where it would be put
    own.parent.mkdir(parents=True)
    shutil.copy(turbo_root / "Comfy-Org/z_image_turbo/split_files/vae/ae.safetensors", own)
    before = times(data / "models" / "vae")
    sent = turbo_hub.sent.total()
    done = install(user)
    assert "is here" in done.output and turbo_hub.sent.total() - sent < 8_500_000  # 9.9 MB without the VAE's 1.9
    removed = user.run("uninstall", "z-image-turbo")
    assert "stays" in removed.output and "it was there before" in removed.output
    assert times(data / "models" / "vae") == before


def test_another_file_of_that_name_is_not_overwritten(user, data):
    own = data / VAE
    own.parent.mkdir(parents=True)
    own.write_bytes(b"my own work")
    before = content(data)
    done = user.install("z-image-turbo")
    assert done.code == 1
    for word in (str(own), "11 bytes", "sha256", "not overwritten", "move it away"):
        assert word in done.message
    assert content(data) == before


def test_verify_finds_what_a_disk_did_and_install_repairs_it(user, data):
    install(user)
    vae = data / VAE
    stat = vae.stat()
    with vae.open("r+b") as file:  # a flipped bit that no time tells of
        file.seek(stat.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(vae, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = user.run("verify")
    assert found.code == 1 and f"{vae}" in found.output and "damaged" in found.output
    assert "candela install z-image-turbo" in found.message
    assert found.output.count("  ok") == 4
    repaired = install(user)
    assert "repair" in repaired.output and "it is damaged" in repaired.message
    assert user.run("verify", "z-image-turbo").code == 0


def test_verify_tells_missing_and_changed_files_apart(user, data):
    install(user)
    (data / VAE).unlink()
    (data / ENCODER).write_bytes(b"another model's, put here by its owner")
    found = user.run("verify", "z-image-turbo")
    assert found.code == 1 and "missing" in found.output and "another file now" in found.output
    before = content(data)
    refused = user.install("z-image-turbo")
    assert refused.code == 1 and "not overwritten: move it away" in refused.message and content(data) == before
    removed = user.run("uninstall", "z-image-turbo")
    assert f"stays    {data / ENCODER}: it was written after" in removed.output
    assert list(content(data)) == [ENCODER]


def test_a_file_put_there_after_a_stop_is_its_owner_s(user, data, turbo_hub):
    turbo_hub.speed = 1_000_000
    try:
        process = user.start("install", "z-image-turbo", "--yes", "--comfyui", "none")
        while not (data / TRANSFORMER).with_name("z_image_turbo_bf16.safetensors.candela-part").exists():
            time.sleep(0.05)
        process.kill()
        process.wait()
    finally:
        turbo_hub.speed = 0
    own = data / TRANSFORMER
    own.write_bytes(b"my own work")
    refused = user.install("z-image-turbo")
    assert refused.code == 1 and "not overwritten" in refused.message
    assert user.run("verify").code == 1
    removed = user.run("uninstall", "z-image-turbo")
    assert f"stays    {own}" in removed.output
    assert content(data) == {TRANSFORMER: sha256(own)}, "and nothing else stays, no lock and no part"


def test_what_an_update_drops_goes_too(user, data, turbo_root, turbo_hub):
    """Files that the next revision of a repository has no more."""
    folder = write_lumina(turbo_root)
    turbo_hub.publish()
    install(user, "lumina-image-2")
    extra = folder / "tokenizer" / "special_tokens_map.json"
    extra.write_text("{}")
    turbo_hub.publish()
    assert "download" in install(user, "lumina-image-2").output
    here = data / "models/diffusers/lumina-image-2/tokenizer/special_tokens_map.json"
    assert here.is_file()
    extra.unlink()
    turbo_hub.publish()
    install(user, "lumina-image-2")
    assert not here.exists()
    assert user.run("uninstall", "lumina-image-2").code == 0
    assert content(data) == {}


def test_a_link_to_a_disk_that_is_not_there_stays(user, data, tmp_path):
    vae = data / "models" / "vae"
    vae.mkdir(parents=True)
    (vae / "ae.safetensors").symlink_to(tmp_path / "not-mounted" / "ae.safetensors")
    refused = user.install("z-image-turbo")
    assert refused.code == 1 and "is a link to" in refused.message and (vae / "ae.safetensors").is_symlink()


def test_a_shared_data_folder_is_read_by_everybody(user, data):
    install(user)
    assert (data / "manifest.json").stat().st_mode & 0o444 == 0o444


def test_what_cannot_be_asked_for(user, data):
    unknown = user.install("z-image-trubo")
    assert unknown.code == 2 and "Did you mean z-image-turbo" in unknown.message
    precision = user.install("z-image-turbo", "--precision", "fp13")
    assert precision.code == 2 and "bf16, int8, nvfp4" in precision.message
    absent = user.install("z-image-turbo", "--precision", "int8")
    assert absent.code == 1 and "z_image_turbo_int8_convrot.safetensors" in absent.message
    nowhere = user.install("z-image-turbo", "--from", "/no/such/folder")
    assert nowhere.code == 1 and "/no/such/folder" in nowhere.message
    never = user.run("verify", "sdxl-turbo")
    assert never.code == 2 and "was not installed" in never.message
    assert not data.exists()


def test_a_damaged_manifest_is_named(user, data):
    install(user)
    (data / "manifest.json").write_text("{")
    for command in (["models"], ["verify"], ["uninstall", "z-image-turbo"]):
        done = user.run(*command)
        assert done.code == 2 and str(data / "manifest.json") in done.message, done.output


def test_of_several_comfyuis_one_has_to_be_named(user):
    for name in ("ComfyUI", "comfyui"):
        for folder in ("custom_nodes", "models"):
            (user.home / name / folder).mkdir(parents=True)
    done = user.run("install", "z-image-turbo", "--yes")
    assert done.code == 2 and str(user.home / "ComfyUI") in done.message and "--comfyui DIR" in done.message


def test_the_demo_needs_no_installing(user, data):
    done = user.install("demo")
    assert done.code == 0 and "comes with Candela" in done.output
    assert not data.exists()


def test_the_demo_is_what_is_published_here(turbo_root):
    assert (DEMO_FOLDER / "tokenizer" / "tokenizer.json").read_bytes() == (
        turbo_root / "Tongyi-MAI/Z-Image-Turbo/tokenizer/tokenizer.json"
    ).read_bytes()
