"""The server that the other tests download from behaves like the hub: the hub's own client says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.install.conftest import LUMINA, ROOT, content

SNAPSHOT = """
import sys
from huggingface_hub import hf_hub_download, snapshot_download
print(snapshot_download(sys.argv[1], cache_dir=sys.argv[2]))
"""
ERRORS = """
import sys
from huggingface_hub import HfApi, hf_hub_download
def ask(what, *arguments, **options):
    try:
        what(*arguments, cache_dir=sys.argv[1], **options)
    except Exception as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
ask(hf_hub_download, "Alpha-VLLM/Lumina-Image-2.0", "absent.json")
ask(hf_hub_download, "Alpha-VLLM/Lumina-Image-2.0", "model_index.json", revision="0" * 40)
ask(hf_hub_download, "no/body", "model_index.json")
ask(hf_hub_download, "some/gated", "config.json")
ask(hf_hub_download, "some/gated", "config.json", token="hf_stranger0token")
ask(hf_hub_download, "some/gated", "config.json", token="wrong")
"""


def client(hub, code, *arguments):
    """Runs code with huggingface_hub in a process of its own, for it reads its settings when it is imported."""
    environment = {"PATH": os.environ["PATH"], "HF_ENDPOINT": hub.url, "NO_PROXY": "*", "HOME": str(hub.root)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True).stdout


def test_its_own_client_downloads_a_repository(hub, tmp_path):
    hub.renamed = {"old/Lumina": LUMINA}
    for name in (LUMINA, "old/Lumina"):
        folder = client(hub, SNAPSHOT, name, tmp_path / "cache").strip()
        assert folder.endswith(hub.commit(LUMINA))
        assert content(Path(folder)) == content(hub.root / LUMINA)
    assert len(hub.asked("api/*/tree/*")) >= 3, "the tree came in pages"


def test_its_own_client_understands_the_errors(hub, tmp_path):
    (hub.root / "some" / "gated").mkdir(parents=True)
    (hub.root / "some" / "gated" / "config.json").write_text("{}")
    hub.publish()
    hub.gated.add("some/gated")
    absent, revision, unknown, gated, stranger, wrong = client(hub, ERRORS, tmp_path).splitlines()
    assert absent.startswith("RemoteEntryNotFoundError 404")
    assert revision.startswith("RevisionNotFoundError 404")
    assert "401 Unauthorized" in unknown, "it reads that as RepositoryNotFoundError from https:// alone"
    assert "Invalid username or password." in unknown
    assert gated.startswith("GatedRepoError 401")
    assert "Please log in" in gated
    assert stranger.startswith("GatedRepoError 403")
    assert "not in the authorized list" in stranger
    assert "Invalid credentials in Authorization header" in wrong
    assert hub.authorizations["127.0.0.1"] == ["Bearer hf_stranger0token", "Bearer wrong"]


@pytest.mark.parametrize(
    ("asked", "answer"),
    [("0-9", (206, "bytes 0-9/5000", 10)), ("-5", (206, "bytes 4995-4999/5000", 5)),
     ("4990-", (206, "bytes 4990-4999/5000", 10)), ("4990-9999", (206, "bytes 4990-4999/5000", 10)),
     ("5000-", (416, "bytes */5000", None)), ("0-1,3-4", (200, None, 5000))],
)  # fmt: skip
def test_ranges(hub, asked, answer):
    import requests

    (hub.root / "file").write_bytes(bytes(range(250)) * 20)
    got = requests.get(f"{hub.url}/plain/file", headers={"Range": f"bytes={asked}"}, timeout=5)
    status, of, length = answer
    assert (got.status_code, got.headers.get("Content-Range")) == (status, of)
    if length:
        first = int(of.split()[1].split("-")[0]) if of else 0
        assert got.content == (bytes(range(250)) * 20)[first : first + length]


def test_what_was_published_stays_and_what_is_written_in_place_is_damage(hub):
    import requests

    old = hub.commit(LUMINA)
    index = hub.root / LUMINA / "model_index.json"
    before = index.read_bytes()
    (index.parent / "new").write_bytes(b"{}")
    (index.parent / "new").replace(index)
    hub.publish()
    new = hub.commit(LUMINA)
    assert new != old
    address = f"{hub.url}/{LUMINA}/resolve"
    assert requests.get(f"{address}/{old}/model_index.json", timeout=5).content == before
    for revision in (new, "main"):
        assert requests.get(f"{address}/{revision}/model_index.json", timeout=5).content == b"{}"
    index.write_bytes(b"[]")
    assert requests.get(f"{address}/main/model_index.json", timeout=5).content == b"[]"


def test_what_goes_wrong_goes_wrong_as_it_was_asked_to(hub):
    import requests

    (hub.root / "file").write_bytes(b"0123456789")
    address = f"{hub.url}/plain/file"
    hub.fault("flip", "plain/*", after=3, times=1)
    assert requests.get(address, timeout=5).content == b"0122456789"
    for kind in ("reset", "truncate"):
        hub.fault(kind, "plain/*", after=4, times=1)
        answer = requests.get(address, timeout=5, stream=True)
        assert answer.headers["Content-Length"] == "10"
        with pytest.raises(requests.exceptions.RequestException):
            _ = answer.content
    hub.fault("stall", "plain/*", after=4, seconds=30, times=1)
    with pytest.raises(requests.exceptions.RequestException, match="timed out"):
        _ = requests.get(address, timeout=0.2).content
    hub.fault("length", "plain/*", by=7, times=1)
    assert requests.get(address, timeout=5, stream=True).headers["Content-Length"] == "17"
    hub.fault("total", "plain/*", by=7, times=1)
    got = requests.get(address, timeout=5, headers={"Range": "bytes=0-4"})
    assert (got.headers["Content-Range"], got.content) == ("bytes 0-4/17", b"01234")
    hub.ranges = False
    assert requests.get(address, timeout=5, headers={"Range": "bytes=0-4"}).content == b"0123456789"
    assert hub.sent["plain/file"] >= 30
