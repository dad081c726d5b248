"""Servers, folders and settings that are not as they should be: a sentence, never a traceback, and no secret told."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from candela.checkpoints.catalogue import installed
from candela.checkpoints.manifest import Installed
from candela.errors import InstallError, SourceError, WrongContent
from candela.install import http as web
from candela.install.comfyui import open_comfyui
from candela.install.environment import Environment
from candela.install.health import _place
from candela.install.http import Refused, Temporary
from candela.install.sources import Absent, Hub, Readable, Remote, Source, open_source
from tests.install.conftest import LUMINA, ROOT, content, write_lumina, write_tensors

COMMIT = "a" * 40
ENTRY = {"type": "file", "oid": "b" * 40, "size": 5, "path": "config.json"}
TAEF1 = "madebyollin/taef1"
Answer = tuple[int, dict[str, str], bytes]


class Strange:
    """A server that answers each path as it is told to. `seen`: path and Authorization of each request."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], Answer]] = {}
        self.otherwise: Answer = (404, {}, b"")
        self.seen: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.seen.append((self.path, self.headers.get("Authorization")))
                status, headers, body = outer.answers.get(self.path.partition("?")[0], lambda: outer.otherwise)()
                if "Transfer-Encoding" not in headers:
                    headers = {"Content-Length": str(len(body)), **headers}
                self.send_response(status)
                self.send_header("Connection", "close")  # else the client may ask again on a connection that is gone
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.close_connection = True
                if self.command == "GET":
                    with contextlib.suppress(ConnectionError):
                        self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Strange:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def says(self, path: str, body: object, headers: dict[str, str] | None = None, status: int = 200) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers[path] = lambda: (status, headers or {}, data)

    def serves(self, folder: Path, below: str = "") -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.says(f"{below}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@pytest.fixture
def server(monkeypatch) -> Iterator[Strange]:
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(web, "BACKOFF", (0.01, 0.01))
    with Strange() as running:
        running.says("/api/models/a/b/revision/main", {"sha": COMMIT})
        yield running


TREE = f"/api/models/a/b/tree/{COMMIT}"


def whole(size: object, **changes: object) -> bytes:
    text = json.dumps([{**ENTRY, "size": "SIZE", **changes}])
    return text.replace('"SIZE"', size if isinstance(size, str) else json.dumps(size)).encode()


BODIES = {
    "text for a size": whole('"abc"'), "NaN": whole("NaN"), "infinite": whole("1e999"), "negative": whole("-5"),
    "a bool": whole("true"), "beyond every disk": whole("9" * 400), "digits without end": whole("9" * 5000),
    "half a character": whole(5, path="\ud800"), "a number for a path": whole(5, path=7),
    "no digest": whole(5, oid="\ud800"), "lfs as text": whole(5, lfs="x"), "no list": b"5", "text": b'"abc"',
    "an entry that is none": b"[1]", "deep": b"[" * 100_000, "deep within bounds": b"[" * 200_000 + b"]" * 200_000,
    "no JSON": b"<html>", "no UTF-8": b"\xff",
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_listing_that_is_none(name, server):
    server.says(TREE, BODIES[name])
    with pytest.raises(SourceError, match="does not answer as the hub does") as told:
        Hub(server.url, {}).files("a/b")
    str(told.value).encode()


def test_a_listing_that_has_more_than_it_may(server):
    server.says(TREE, b" " * 64_000_001)
    with pytest.raises(SourceError, match="more than 64 MB"):
        Hub(server.url, {}).files("a/b")


def test_an_answer_that_was_compressed_unasked(server):
    packed = gzip.compress(json.dumps([ENTRY]).encode())
    server.says(TREE, packed, {"Content-Encoding": "gzip"})
    assert [remote.path for remote in Hub(server.url, {}).files("a/b")] == ["config.json"]
    for damaged in (packed[:-8] + b"01234567", b"no gzip at all"):
        server.says(TREE, damaged, {"Content-Encoding": "gzip"})
        with pytest.raises(SourceError, match="cannot be decompressed"):
            Hub(server.url, {}).files("a/b")


def test_a_connection_that_breaks_inside_an_answer_is_tried_again(server):
    text = json.dumps([ENTRY]).encode()
    chunked = b"%x\r\n" % len(text)
    answers = [
        (200, {"Transfer-Encoding": "chunked"}, chunked + text[:9]),
        (200, {"Content-Length": str(len(text))}, text[:9]),
        (200, {"Transfer-Encoding": "chunked"}, chunked + text + b"\r\n0\r\n\r\n"),
    ]
    server.answers[TREE] = lambda: answers.pop(0)
    assert [remote.path for remote in Hub(server.url, {}).files("a/b")] == ["config.json"]
    server.answers[TREE] = lambda: (200, {"Transfer-Encoding": "chunked"}, chunked + text[:9])
    with pytest.raises(Temporary, match="broke off"):
        Hub(server.url, {}).files("a/b")


@pytest.mark.parametrize("link", ["http://[x", "{tree}", "?page={n}", "file:///etc/passwd", "http://127.0.0.1:99999/"])
def test_a_next_page_that_is_none(link, server, monkeypatch):
    monkeypatch.setattr("candela.install.sources.hub.MAX_PAGES", 20)
    count = iter(range(10**6))

    def page() -> Answer:
        to = link.format(tree=f"{TREE}?recursive=true", n=next(count))
        return 200, {"Link": f'<{to}>; rel="next"'}, json.dumps([ENTRY]).encode()

    server.answers[TREE] = page
    with pytest.raises(SourceError):
        Hub(server.url, {}).files("a/b")
    assert len(server.seen) <= 22


@pytest.mark.parametrize("after", ["²", "9" * 5000, "Mon, 01 Jan 0001 00:00:00 -0000"])
def test_a_time_to_wait_that_is_none(after, server):
    server.says(TREE, b"", {"Retry-After": after}, 503)
    with pytest.raises(SourceError, match=r"503|left alone"):
        Hub(server.url, {}).files("a/b")


def test_a_length_that_is_none(server):
    server.says("/file", b"x", {"Content-Length": "9" * 5000})
    with pytest.raises(SourceError, match="does not tell its length"):
        open_source(server.url).files("a/b", ["file"])


@pytest.mark.parametrize("to", ["http://[x", "http://h:port/"])
@pytest.mark.parametrize("end", [2, 5])
def test_a_redirect_to_nowhere(to, end, server):
    server.says("/file", b"", {"Location": to}, 302)
    remote = Remote("a/b", "x", "file", 5, f"{server.url}/file")
    with pytest.raises(SourceError, match="address"), Hub(server.url, {}).open(remote, 0, end):
        pass


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [("http://[x", "no address"), ("huggingface.co", "write https:// in front"), ("http://h:port", "no address"),
     ("http://", "no address"), ("me:secret@host", "is host: write https://"), ("http://me:se/cret@host", "no address"),
     ("ftp://me:secret@host", "is ftp://host: write https://")],
)  # fmt: skip
def test_an_endpoint_that_is_no_address(endpoint, says, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(SourceError, match=f"HF_ENDPOINT.*{says}") as told:
        open_source()
    assert "cret" not in str(told.value)


@pytest.mark.parametrize("name", ["~nouser/x", "n" * 5000, "http://[x", "x\0y", "ftp://me:secret@host"])
def test_a_source_that_is_none(name):
    with pytest.raises(SourceError) as told:
        open_source(name)
    assert len(str(told.value)) < 400 and "secret" not in str(told.value)


@pytest.mark.parametrize("name", ["~nouser/x", "n" * 5000])
def test_a_comfyui_that_is_none(name):
    with pytest.raises(InstallError) as told:
        open_comfyui(name)
    assert "--comfyui DIR" in str(told.value)


ASK = "from candela.install.sources import open_source; open_source().files('a/b')"


def test_the_token_that_the_hub_s_own_library_finds(tmp_path, server, monkeypatch):
    """Kept in a file, or in the environment; and nothing else is asked for on the way."""
    server.says(TREE, [ENTRY])
    (tmp_path / "token").write_text(" hf_kept\n")
    environment = {"PATH": os.environ["PATH"], "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
    subprocess.run([sys.executable, "-c", ASK], env=environment, cwd=ROOT, check=True)
    assert server.seen[0] == ("/api/models/a/b/revision/main", "Bearer hf_kept")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_new\n")
    server.seen.clear()
    open_source().files("a/b")
    assert {sent for _, sent in server.seen} == {"Bearer hf_new"}
    monkeypatch.setenv("HF_TOKEN", "hf_se cret")
    with pytest.raises(SourceError, match="HF_TOKEN") as told:
        open_source()
    assert "cret" not in str(told.value)


def test_settings_that_the_hub_s_own_library_refuses(tmp_path, server):
    """It reads them when it is imported."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_DOWNLOAD_TIMEOUT": "7.5"}
    command = [sys.executable, "-m", "candela", "install", "lumina-image-2", "--yes", "--comfyui", "none"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "'7.5'" in done.stderr and "HF_HUB_DOWNLOAD_TIMEOUT" in done.stderr
    assert "Traceback" not in done.stderr
    assert content(tmp_path) == {}


def test_name_and_password_go_to_their_server_only(server, monkeypatch):
    host = server.url.removeprefix("http://")
    basic = f"Basic {base64.b64encode(b'me:se@cret').decode()}"
    monkeypatch.setenv("HF_ENDPOINT", f"http://me:se%40cret@{host}/")
    server.says(TREE, [ENTRY])
    hub = open_source()
    (remote,) = hub.files("a/b")
    assert {sent for _, sent in server.seen} == {basic}
    assert hub.name == server.url and "cret" not in remote.place
    with pytest.raises(SourceError) as told:
        hub.files("a/absent")
    assert "cret" not in str(told.value) and host in str(told.value)
    server.otherwise = (401, {}, b"")
    with pytest.raises(SourceError, match=f"{host} refuses the name and password") as told:
        hub.files("a/absent")
    assert "cret" not in str(told.value)
    server.otherwise = (404, {}, b"")

    with Strange() as other:
        for to, base, sent in ((other, f"http://me:pw@localhost:{other.url.rpartition(':')[2]}", None),
                               (server, server.url, basic)):  # fmt: skip
            to.says("/elsewhere", b"12345")
            server.says("/config.json", b"", {"Location": f"{base}/elsewhere"}, 302)
            plain = open_source(f"http://me:se%40cret@{host}")
            (remote,) = plain.files("a/b", ["config.json"])
            assert plain.read(remote) == b"12345" and plain.name == server.url
            assert {told for path, told in to.seen if path == "/elsewhere"} == {sent}


def test_a_token_does_not_leave_tls():
    """Not for http, not for another port; a redirect from http to https does not bring it either."""
    session = web.Web({"authorization": "Bearer hf_secret"}, "https://hub.example")
    for url, sent in (
        ("https://hub.example/x", True), ("https://HUB.example:443/x", True), ("http://hub.example/x", False),
        ("https://hub.example:8443/x", False), ("https://hub.example.org/x", False),
    ):  # fmt: skip
        prepared = web.requests.Request("GET", url, auth=session._authorize).prepare()
        assert ("Authorization" in prepared.headers) == sent, url
    prepared = web.requests.Request("GET", "http://hub.example/x", headers={"Authorization": "Bearer x"}).prepare()
    session._session().rebuild_auth(prepared, web.requests.Response())
    assert "Authorization" not in prepared.headers


def test_a_text_that_is_none(server):
    server.says("/file", b"x" * 50)
    plain = open_source(server.url)
    assert plain.read(Remote("a/b", "", "file", 50, f"{server.url}/file")) == b"x" * 50
    with pytest.raises(SourceError, match="16000000 at most"):
        plain.read(Remote("a/b", "", "file", 16_000_001, f"{server.url}/file"))
    with pytest.raises(WrongContent, match="50 bytes; 49 were"):
        plain.read(Remote("a/b", "", "file", 49, f"{server.url}/file"))
    assert Endless().read(Remote("a/b", "", "file", 100_000)) == b"x" * 100_000
    with pytest.raises(Temporary, match="ended after 0 of 9 bytes"):
        Endless().read(Remote("a/b", "", "empty", 9))


class Endless(Source):
    name = "endless"

    def files(self, repository: str, paths: Sequence[str] = (), kind: str = "", revision: str = "") -> list[Remote]:
        return []

    @contextlib.contextmanager
    def open(self, remote: Remote, start: int, end: int) -> Iterator[Readable]:
        yield Letters(0 if remote.path == "empty" else 1)


class Letters:
    """Text without an end; or none."""

    def __init__(self, per_byte: int):
        self._per_byte = per_byte

    def read(self, length: int, /) -> bytes:
        return b"x" * length * self._per_byte


# --- whole repositories where Candela put them ------------------------------------------------------


def write_taef1(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    write_tensors(folder / "diffusion_pytorch_model.safetensors", 1000)
    return folder


@pytest.mark.parametrize("name", ["diffusers/lumina-image-2", f"diffusers/{LUMINA}"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_whole_repository_in_a_models_folder(name, plain, tmp_path, server):
    folder = write_lumina(tmp_path / "published", transformer=(1000, 1000), text_encoder=(1000,))
    shutil.copytree(folder, tmp_path / "models" / name)
    taef1 = write_taef1(tmp_path / "models" / "vae_approx" / "taef1")
    server.serves(tmp_path / "models")
    found = open_source(server.url if plain else str(tmp_path / "models"))
    wanted = {n for n in content(folder) if n.endswith((".json", ".safetensors"))}
    for kind in ("diffusers/lumina-image-2", ""):
        remotes = found.files(LUMINA, kind=kind)
        assert wanted <= {remote.path for remote in remotes}
        assert all(name in remote.place for remote in remotes)
    remotes = found.files(TAEF1, kind="vae_approx/taef1")
    assert {remote.path for remote in remotes} == set(content(taef1))
    assert found.files("some/other", kind="diffusers/some/other") == []


@pytest.mark.parametrize("plain", [False, True])
def test_another_kind_of_model_is_not_taken_for_it(plain, tmp_path, server):
    """What lies side by side has no name: a single component is no pipeline."""
    write_taef1(tmp_path / "models")
    server.serves(tmp_path / "models")
    found = open_source(server.url if plain else str(tmp_path / "models"))
    assert found.files(LUMINA) == []
    assert len(found.files(TAEF1)) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_what_it_does_not_have(status, tmp_path, server):
    server.otherwise = (status, {}, b"")
    found = open_source(server.url)
    with pytest.raises(Refused, match=f"HTTP {status}"):
        found.files(LUMINA, kind="diffusers/lumina-image-2")
    with pytest.raises(Absent, match=f"HTTP {status}"):  # so that another precision is looked for
        found.files("a/b", ["file"], "vae")
    folder = write_lumina(tmp_path / "published", transformer=(1000, 1000), text_encoder=(1000,))
    server.serves(folder, "/diffusers/lumina-image-2")
    paths = {remote.path for remote in found.files(LUMINA)}
    assert paths == {n for n in content(folder) if n.endswith((".json", ".safetensors"))}
    del server.answers["/diffusers/lumina-image-2/vae/diffusion_pytorch_model.safetensors"]
    with pytest.raises(Refused, match="vae"):
        found.files(LUMINA)
    server.says("/vae/file", b"x")
    assert [remote.bytes for remote in found.files("a/b", ["file"], "vae")] == [1]


@pytest.fixture
def mine() -> Iterator[Path]:
    """A folder whose permissions hold for this process, who may be root."""
    with tempfile.TemporaryDirectory() as folder:
        nobody = os.geteuid() == 0
        if nobody:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if nobody:
                os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="chmod has no such meaning elsewhere")
@pytest.mark.parametrize("private", ["models/owner", "models/owner/name/vae", "models/models--owner--name/snapshots"])
def test_a_private_folder(private, mine):
    root = write_taef1(mine / "models" / "owner" / "name")
    (root / "vae").mkdir()
    (mine / private).mkdir(parents=True, exist_ok=True)
    (mine / private).chmod(0)
    try:
        with pytest.raises(SourceError, match=f"{private}.*cannot be read: Permission denied"):
            open_source(str(mine / "models")).files("owner/name")
    finally:
        (mine / private).chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="chmod has no such meaning elsewhere")
def test_a_private_folder_as_source_and_as_comfyui(mine):
    (mine / "private" / "below").mkdir(parents=True)
    (mine / "private").chmod(0)
    try:
        with pytest.raises(SourceError, match="Permission denied"):
            open_source(str(mine / "private" / "below"))
        for folder in (mine / "private", mine / "private" / "below"):
            with pytest.raises(InstallError, match="cannot be looked into: Permission denied"):
                open_comfyui(folder)
    finally:
        (mine / "private").chmod(0o700)


# --- settings, markers, manifests, the script -------------------------------------------------------


def test_conditions_that_cannot_be_evaluated_are_nobody_s_needs():
    environment = Environment(Path("python"), {"python_version": "3.11", "platform_release": "5.15.0-azure"})
    texts = ['x; python_version ~= "abc"', 'x; "a" ~= "b"', "???", 'x; platform_release >= "5"', "y>=1"]
    assert "y" in [need.name for need in environment.needs("who", texts)]
    assert environment.needs("who", texts[:3]) == []


@pytest.mark.parametrize("text", ["{", '{"version": 1}', "[]", "\0"])
def test_a_damaged_manifest_leaves_the_list(text, tmp_path, monkeypatch):
    monkeypatch.setenv("CANDELA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "manifest.json").write_text(text)
    assert [model.name for model in installed()] == ["demo"]
    listing = (
        "import sys, types; sys.modules['folder_paths'] = types.SimpleNamespace(get_folder_paths=lambda kind: [])\n"
        "from candela.comfyui.names import listed; print(*listed())"
    )
    shown = subprocess.check_output([sys.executable, "-c", listing], text=True, cwd=ROOT)
    assert {"demo", "z-image-turbo"} <= set(shown.split())


def test_the_remedy_names_the_comfyui_of_the_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("CANDELA_HOME", str(tmp_path / "data"))
    for name in ("one", "two"):
        (tmp_path / name / "custom_nodes").mkdir(parents=True)
        (tmp_path / name / "models").mkdir()
    entry = Installed("z-image", "", root=str(tmp_path / "two" / "models"), source="hub")
    for found in (open_comfyui(tmp_path / "one"), open_comfyui(tmp_path / "two"), None):
        assert _place(entry, found) == f" --comfyui {tmp_path / 'two'}"
    assert (
        _place(Installed("z-image", "", root=str(tmp_path / "data" / "models"), source="hub"), None)
        == " --comfyui none"
    )


@pytest.fixture
def script(tmp_path) -> Path:
    """In a clone in which nothing else is."""
    (tmp_path / "scripts").mkdir()
    return shutil.copy(ROOT / "scripts" / "install_z_image.py", tmp_path / "scripts")


@pytest.mark.skipif(os.name != "posix", reason="there is no exec elsewhere")
def test_the_script_becomes_the_installer(script, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / ".venv" / ".ready").touch()
    python.write_text('#!/bin/sh\necho $$ "$PYTHONPATH" "$@"\nexit 7\n')
    python.chmod(0o755)
    process = subprocess.Popen([sys.executable, script, "--yes"], stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=30)
    assert output.split()[0] == str(process.pid) and str(tmp_path / "src") in output
    assert output.split()[2:] == ["-m", "candela", "install", "z-image-turbo", "--yes"]
    assert process.returncode == 7


def test_the_script_says_what_failed(script, tmp_path):
    (tmp_path / "build").write_text("a file where a folder should go")
    run = subprocess.run([sys.executable, "-S", script], capture_output=True, text=True)
    assert run.returncode == 1
    assert f"It was: {sys.executable} -m venv {tmp_path / 'build' / 'installer'}" in run.stderr
