"""ComfyUI's native Z-Image as a side: another process, in ComfyUI's own Python, over the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import candela
from candela.bench.measuring import Side
from candela.bench.models import Pair
from candela.bench.suites import Sides, Work
from candela.errors import InvalidRequest

SCRIPT = Path(candela.__file__).parent / "comfyui" / "native.py"


def checkout() -> tuple[Path, Path]:
    """ComfyUI's folder and its Python, from COMFYUI_DIR.

    Raises:
        InvalidRequest: there is none.
    """
    folder = Path(os.environ.get("COMFYUI_DIR", ""))
    if not os.environ.get("COMFYUI_DIR") or not (folder / "comfy").is_dir():
        raise InvalidRequest(
            f"ComfyUI is to be measured too, and COMFYUI_DIR ({os.environ.get('COMFYUI_DIR') or 'not set'}) is no "
            "folder of a ComfyUI: set it to yours"
        )
    beside = [folder / where for where in (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe")]
    return folder, next((python for python in beside if python.exists()), Path(sys.executable))


@contextmanager
def native(pair: Pair, *arguments: str) -> Iterator[Sides]:
    """-> a function from the work to its side; `arguments` are ComfyUI's own.

    It gets encoded prompts: its text encoder comes in one size, with its own words. So its time is without the text's
    part, which ours and diffusers' have in theirs."""
    from safetensors.torch import save_file

    folder, python = checkout()
    with tempfile.TemporaryDirectory(prefix="candela-bench-") as place:
        for name in ("transformer", "vae"):
            tensors = getattr(pair.pipeline, name).state_dict().items()
            save_file({key: value.contiguous() for key, value in tensors}, f"{place}/{name}.safetensors")
        command = [str(python), str(SCRIPT), str(folder), place, *arguments]
        with (
            open(Path(place, "log"), "w", encoding="utf-8") as log,
            subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            try:
                worker = Worker(process, Path(place))
                worker.wait_for("ready")
                yield lambda work: {"comfyui": worker.side(pair, work)}
            finally:
                process.kill()


@dataclass(frozen=True)
class Worker:
    """The script `native.py` at work. What it says beside its answers goes into `place`/log."""

    process: subprocess.Popen[str]
    place: Path

    def side(self, pair: Pair, work: Work) -> Side:
        from PIL import Image
        from safetensors.torch import save_file

        for run in range(work.runs + 1):  # before any clock runs, and past the engine's memory of prompts
            features = pair.engine.family.encode(pair.engine.components, [work.prompt(run)], None).positive[0]
            save_file({"features": features.cpu().contiguous()}, self._features(run))
        file = self.place / "picture"
        order = {"width": work.size, "height": work.size, "steps": work.steps, "picture": str(file)}

        def comfyui(run: int) -> Image.Image:
            assert self.process.stdin
            message = json.dumps({**order, "features": str(self._features(run)), "seed": run})
            print(message, file=self.process.stdin, flush=True)
            self.wait_for("done")
            return Image.frombytes("RGB", (work.size, work.size), file.read_bytes())

        return comfyui

    def _features(self, run: int) -> Path:
        return self.place / f"features-{run}.safetensors"

    def wait_for(self, answer: str) -> None:
        """
        Raises:
            InvalidRequest: ComfyUI stopped, with the last it said.
        """
        assert self.process.stdout
        if self.process.stdout.readline().strip() != answer:
            self.process.kill()
            said = " ".join((self.place / "log").read_text(encoding="utf-8", errors="replace").split())[-400:]
            raise InvalidRequest(f"ComfyUI stopped. Its last words: {said}")
