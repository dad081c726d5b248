"""A real ComfyUI server for the tests: started, spoken to as its own page does, and stopped."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import websocket
from PIL import Image

FOLDERS = ("custom_nodes", "input", "output", "temp", "user/default", "models/diffusers", "models/vae")


@dataclass(frozen=True)
class Core:
    """A ComfyUI checkout and the Python that runs it."""

    path: Path
    python: Path

    @property
    def version(self) -> str:
        text = (self.path / "comfyui_version.py").read_text()
        return text.split('"')[1]


def cores() -> list[Core]:
    """COMFYUI_DIR if set, else every checkout under ~/.cache/candela/comfyui that has a .venv."""
    if chosen := os.environ.get("COMFYUI_DIR"):
        paths = [Path(chosen).expanduser()]
    else:
        paths = sorted((Path.home() / ".cache" / "candela" / "comfyui").glob("*"))
    found = [Core(path, path / ".venv" / "bin" / "python") for path in paths]
    return [core for core in found if core.python.is_file() and (core.path / "main.py").is_file()]


@dataclass
class Run:
    """What one prompt did, as its events told."""

    prompt_id: str
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)
    pictures: dict[str, list[Image.Image]] = field(default_factory=dict)

    def named(self, name: str) -> list[dict[str, Any]]:
        return [data for kind, data in self.events if kind == name]

    @property
    def ok(self) -> bool:
        return bool(self.named("execution_success"))

    @property
    def error(self) -> str:
        return self.named("execution_error")[0]["exception_message"]

    @property
    def executed(self) -> set[str]:
        """Ids of the nodes that ran, and were not taken from the cache."""
        return {data["node"] for data in self.named("executing") if data.get("node")}


class Server:
    """A ComfyUI on a free port, with a base directory of its own."""

    def __init__(self, core: Core, base: Path, *, environment: dict[str, str] | None = None, options: tuple = ()):
        self.core, self.base = core, base
        for folder in FOLDERS:
            (base / folder).mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log_file = base / "server.log"
        command = [
            core.python, "main.py", "--cpu", "--base-directory", base, "--port", str(self.port),
            "--database-url", f"sqlite:///{base / 'comfyui.db'}", "--disable-auto-launch", "--disable-api-nodes",
            *options,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=core.path,
            stdout=self.log_file.open("w"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
        )
        self._wait_until_up()
        self.client_id = uuid.uuid4().hex
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws?clientId={self.client_id}", timeout=300
        )

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                self.get("/system_stats")
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI {self.core.version} did not start:\n{self.log[-3000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    def get(self, path: str, **query: str) -> bytes:
        suffix = "?" + urllib.parse.urlencode(query) if query else ""
        with urllib.request.urlopen(self.url + path + suffix, timeout=60) as answer:
            return answer.read()

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, body: Any) -> bytes:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def submit(self, prompt: dict[str, Any]) -> str:
        """Queues an API-format workflow; -> its prompt id. What ComfyUI refuses at once is an AssertionError."""
        try:
            return json.loads(self.post("/prompt", {"prompt": prompt, "client_id": self.client_id}))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def run(self, prompt: dict[str, Any], on_event=lambda kind, data: None) -> Run:
        """Queues `prompt` and follows it to its end."""
        run = Run(self.submit(prompt))
        while True:
            message = self.socket.recv()
            if isinstance(message, bytes):
                # 4 bytes of event type (1: preview), 4 of image type, then the picture
                if message[:4] == b"\0\0\0\1":
                    run.previews.append(Image.open(io.BytesIO(message[8:])))
                continue
            event = json.loads(message)
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id", run.prompt_id) != run.prompt_id:
                continue
            run.events.append((kind, data))
            on_event(kind, data)
            if kind in ("execution_success", "execution_error", "execution_interrupted"):
                break
        if run.ok:
            run.pictures = self._pictures(run.prompt_id)
        return run

    def _pictures(self, prompt_id: str) -> dict[str, list[Image.Image]]:
        for _ in range(100):  # the history is written just after the last event
            history = self.get_json(f"/history/{prompt_id}")
            if prompt_id in history:
                break
            time.sleep(0.05)
        return {
            node: [
                Image.open(io.BytesIO(self.get("/view", **{k: i[k] for k in ("filename", "subfolder", "type")})))
                for i in output.get("images", [])
            ]
            for node, output in history[prompt_id]["outputs"].items()
        }

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def free(self) -> None:
        """What the Free memory button does."""
        self.post("/free", {"unload_models": True, "free_memory": True})
