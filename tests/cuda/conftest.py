"""Each test here runs on the CPU in `make test`, so that it is known to work, and on a card in `make test-cuda`, which
writes build/cuda-report.json and build/cuda-report.txt to be sent to us."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.memory import make_model
from candela.record import versions
from tests import tiny

REPORT = Path(__file__).parents[2] / "build" / "cuda-report.json"
BEGAN = time.time()
found: list[dict[str, Any]] = []


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"NO CARD: torch {torch.__version__} sees no CUDA device, so nothing is tested on one")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def middle(tmp_path_factory) -> Path:
    """A random Z-Image of 250 million parameters."""
    return make_model(tmp_path_factory.mktemp("middle") / "model")


@pytest.fixture(scope="session")
def deep(tmp_path_factory) -> Path:
    """The tiny Z-Image with more blocks, so that some of them stay and others go."""
    return tiny.z_image(tmp_path_factory.mktemp("deep") / "model", layers=5)


@pytest.fixture
def model(device, request) -> Path:
    """As large as the device is for: what matters on a card is not seen on a tiny one."""
    return request.getfixturevalue("middle" if device.type == "cuda" else "deep")


@pytest.fixture
def figure(record_property):
    """Notes a figure for the report."""
    return record_property


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "tests/cuda/" not in report.nodeid or "[cpu" in report.nodeid:
        return
    if report.when == "call" or report.outcome != "passed":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")[-2000:]
        found.append(
            {
                "test": report.nodeid.rpartition("/")[2],
                "outcome": report.outcome,
                "seconds": round(report.duration, 1),
                "figures": dict(report.user_properties),
                "why": why,
            }
        )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.option.markexpr != "cuda" or not found:
        return
    whole = {"machine": machine(), "seconds": round(time.time() - BEGAN), "tests": found}
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(whole, indent=1) + "\n")
    text = as_text(whole)
    REPORT.with_suffix(".txt").write_text(text)
    terminalreporter.write_line(text)
    terminalreporter.write_line(f"To be sent: {REPORT}")


def machine() -> dict[str, Any]:
    about: dict[str, Any] = {**versions(), "cuda": torch.version.cuda, "system": platform.platform(), "card": None}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "card": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
        }
    return about


def _driver() -> str:
    file = Path("/proc/driver/nvidia/version")
    return file.read_text().splitlines()[0] if file.exists() else "unknown"


def as_text(whole: dict[str, Any]) -> str:
    lines = [f"{name}: {value}" for name, value in whole["machine"].items()]
    lines.append(f"{len(whole['tests'])} tests in {whole['seconds']} s")
    for one in whole["tests"]:
        figures = ", ".join(f"{name} {value}" for name, value in one["figures"].items())
        told = figures if one["outcome"] == "passed" else (one["why"].splitlines() or [""])[-1]
        lines.append(f"{one['outcome']:8}{one['seconds']:7.1f} s  {one['test']}  {told}")
    return "\n".join(lines) + "\n"
