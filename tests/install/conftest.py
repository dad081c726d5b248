from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.install.hub import Hub

LUMINA = "Alpha-VLLM/Lumina-Image-2.0"
INSTALL = ("install", "lumina-image-2", "--yes", "--comfyui", "none")
CANDELA = (sys.executable, "-m", "tests.install.shell")
ROOT = Path(__file__).parent.parent.parent
# The device and the number of threads, where the tests have set them: another number rounds otherwise.
THE_SAME_PIXELS = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


@dataclass
class Machine:
    """A user's machine: an empty home, and the installer as they call it, in a process of its own."""

    home: Path
    endpoint: str
    backoff: str = "0.05 0.05 0.05 0.05"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> Path:
        return self.home / "data" / "models"

    @property
    def lumina(self) -> Path:
        return self.models / "diffusers" / "lumina-image-2"

    def variables(self) -> dict[str, str]:
        """The environment: nothing of ours but what is named here."""
        return {name: os.environ[name] for name in THE_SAME_PIXELS if name in os.environ} | {
            "PATH": os.environ["PATH"], "HOME": str(self.home), "CANDELA_HOME": str(self.home / "data"),
            "HF_ENDPOINT": self.endpoint, "HF_HUB_DOWNLOAD_TIMEOUT": "1", "NO_PROXY": "*", "COLUMNS": "200",
            "CANDELA_TEST_BACKOFF": self.backoff, **self.environment,
        }  # fmt: skip

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """`candela ARGUMENTS`, its output in one stream."""
        return subprocess.Popen(
            [*CANDELA, *map(str, arguments)], cwd=ROOT, env=self.variables() | environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str | Path, **environment: str) -> Done:
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=90)
        return Done(process.returncode, output)

    def install(self, model: str = "lumina-image-2", *arguments: str | Path, **environment: str) -> Done:
        """Without a ComfyUI, whatever the machine has."""
        return self.run("install", model, *INSTALL[2:], *arguments, **environment)


@dataclass(frozen=True)
class Done:
    code: int
    output: str

    @property
    def message(self) -> str:
        """The output on one line: how it is broken into lines is no part of a message."""
        return " ".join(self.output.split())


def write_tensors(path: Path, size: int, seed: object = "") -> Path:
    """A safetensors file of about `size` random bytes."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        source = random.Random(f"{seed}{path.name}{size}")
        while size:
            file.write(source.randbytes(min(size, 1 << 24)))
            size -= min(size, 1 << 24)
    return path


def write_lumina(root: Path, transformer: Sequence[int] = (300_000,), text_encoder: Sequence[int] = (200_000,)) -> Path:
    """Lumina-Image-2.0's repository, of small files: bytes of each of the two components' shards.

    With what a repository has besides: a card, a picture, and git's own file.
    """
    folder = root / LUMINA
    texts = {
        "model_index.json": {
            "_class_name": "Lumina2Pipeline", "_diffusers_version": "0.33.0.dev0",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "Gemma2Model"], "tokenizer": ["transformers", "GemmaTokenizerFast"],
            "transformer": ["diffusers", "Lumina2Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 6.0},
        "text_encoder/config.json": {"architectures": ["Gemma2Model"], "model_type": "gemma2"},
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "GemmaTokenizer", "words": ["word"] * 400},
        "tokenizer/tokenizer.json": {"version": "1.0", "words": ["word"] * 2000},
        "transformer/config.json": {"_class_name": "Lumina2Transformer2DModel"},
        "vae/config.json": {"_class_name": "AutoencoderKL"},
    }  # fmt: skip
    for name, value in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    (folder / "README.md").write_text("# Lumina-Image-2.0\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    (folder / "samples.png").write_bytes(b"\x89PNG" + b"0" * 5000)
    write_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors", 100_000)
    _write_shards(folder / "transformer", "diffusion_pytorch_model", transformer)
    _write_shards(folder / "text_encoder", "model", text_encoder)
    return folder


def _write_shards(folder: Path, stem: str, sizes: Sequence[int]) -> None:
    if len(sizes) == 1:
        write_tensors(folder / f"{stem}.safetensors", sizes[0])
        return
    names = [f"{stem}-{k + 1:05}-of-{len(sizes):05}.safetensors" for k in range(len(sizes))]
    for name, size in zip(names, sizes):
        write_tensors(folder / name, size)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": {f"x{k}": name for k, name in enumerate(names)}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(folder: Path) -> dict[str, str]:
    """Every weight file below `folder` -> its sha256."""
    return {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*.safetensors"))}


def content(folder: Path) -> dict[str, str]:
    """Every file below `folder` -> its sha256; what is not finished too."""
    return {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def times(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below `folder` -> length and time of its last change."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def published_by(folder: Path) -> dict[str, str]:
    """What of a repository's files belongs to the model -> sha256."""
    return {n: d for n, d in content(folder).items() if n.endswith((".json", ".safetensors"))}


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def hub(root) -> Iterator[Hub]:
    """A hub with a Lumina of three small weight files, its transformer of three segments."""
    write_lumina(root, transformer=(20_000_000,))
    with Hub(root) as running:
        yield running
        assert running.violations == []


@pytest.fixture
def machine(tmp_path, hub) -> Machine:
    (tmp_path / "home").mkdir()
    return Machine(tmp_path / "home", hub.url)
