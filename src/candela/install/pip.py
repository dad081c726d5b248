"""pip, run for another Python, and what its failures mean."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.version import Version

from candela.errors import Conflict, InstallError, SourceError
from candela.install.comfyui import quoted
from candela.install.environment import Environment, quiet_environ

REPORTS = Version("22.2")  # `install --dry-run --report`
MANAGES_OTHERS = Version("22.3")  # `--python`
UNREACHABLE = re.compile(
    r"connection broken|NewConnectionError|ConnectTimeout|ReadTimeout|Read timed out|name resolution|SSLError|"
    r"ProxyError|Max retries exceeded|Connection refused",
    re.IGNORECASE,
)
NOT_OFFERED = re.compile(r"Could not find a version that satisfies the requirement (.+?) \(from versions: (.*)\)")


class NotOffered(SourceError):
    """The index can be reached, and does not have that package in that version."""


def resolve(environment: Environment, requirements: list[str], constraints: list[str]) -> list[dict[str, Any]]:
    """What pip would install: the metadata of each distribution. Nothing is changed.

    Raises:
        Conflict: no versions go together.
        SourceError: the package index cannot be reached, or has no such package.
        InstallError: pip is missing, or fails in another way.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted, held, report = Path(folder, "requirements.txt"), Path(folder, "held.txt"), Path(folder, "report.json")
        wanted.write_text("\n".join(requirements), "utf-8")
        held.write_text("\n".join(constraints), "utf-8")
        options = ["--dry-run", "--report", str(report), "-r", str(wanted), "-c", str(held)]
        _run(environment, "install", *options)
        return [one["metadata"] for one in json.loads(report.read_text("utf-8"))["install"]]


def install(environment: Environment, versions: dict[str, str]) -> None:
    """Installs exactly `versions`, name -> version, and nothing that they need: torch cannot be touched.

    Raises:
        SourceError, InstallError: as `resolve`.
    """
    if versions:
        # Compiled files would be rewritten by the first run with other dates; without them, what pip recorded is all.
        pinned = [f"{name}=={version}" for name, version in versions.items()]
        _run(environment, "install", "--no-deps", "--no-compile", *pinned)


def uninstall(environment: Environment, names: list[str]) -> None:
    """Raises: InstallError: pip could not."""
    if names:
        _run(environment, "uninstall", "--yes", *names)


def _run(environment: Environment, command: str, *options: str) -> None:
    call = [*_pip(environment), command, "--no-input", "--disable-pip-version-check", *options]
    environ = {**quiet_environ(), "PIP_ROOT_USER_ACTION": "ignore", "PYTHONIOENCODING": "utf-8"}
    with tempfile.TemporaryDirectory() as empty:
        run = subprocess.run(call, cwd=empty, env=environ, capture_output=True, text=True, encoding="utf-8")
    if run.returncode:
        raise failure(f"{run.stdout}\n{run.stderr}", environment)


def _pip(environment: Environment) -> list[str]:
    """Its own pip; where it has none (uv makes such), or one too old to report, this Python's."""
    theirs = environment.installed("pip")
    if theirs and Version(theirs) >= REPORTS:
        return [str(environment.python), "-m", "pip"]
    try:
        ours = Version(importlib.metadata.version("pip"))
    except importlib.metadata.PackageNotFoundError:
        ours = None
    if ours and ours >= MANAGES_OTHERS:
        return [sys.executable, "-m", "pip", "--python", str(environment.python)]
    raise InstallError(
        f"ComfyUI's Python has {f'pip {theirs}, and {REPORTS} or newer is needed' if theirs else 'no pip'} to find out "
        f"what can be installed without harm. Run: {quoted(environment.python)} -m "
        + ("pip install --upgrade pip" if theirs else "ensurepip")
    )


def failure(output: str, environment: Environment) -> InstallError:
    """pip's `output` as one of our errors. All but the last are found before pip changes anything."""
    if "The conflict is caused by:" in output:
        return Conflict(
            f"what Candela requires does not go together with what {environment.python} has: {_sides(output)}. "
            "Nothing was changed. Update ComfyUI, or give Candela a ComfyUI of its own"
        )
    if UNREACHABLE.search(output):
        return SourceError(
            f"pip cannot reach its package index to fetch what ComfyUI's Python lacks ({_last(output)}). Nothing was "
            "changed. Check the connection, or the proxy and PIP_INDEX_URL, and run it again"
        )
    if missing := NOT_OFFERED.search(output):
        offers = "no version at all" if missing[2] == "none" else f"only {missing[2][-200:]}"
        return NotOffered(
            f"pip's package index has {offers} of {missing[1]} for Python {environment.version}. Nothing was changed. "
            "Check PIP_INDEX_URL and PIP_NO_INDEX, if they are set; otherwise a newer Python for ComfyUI may help"
        )
    if "externally-managed-environment" in output:
        return InstallError(
            f"{environment.python} belongs to the operating system, which lets nobody install into it. Nothing was "
            "changed. Give ComfyUI an environment of its own (python3 -m venv .venv), or, in a container, set "
            "PIP_BREAK_SYSTEM_PACKAGES=1 and run it again"
        )
    return InstallError(
        f"pip failed for {environment.python}: {_last(output)}. Put that right and run the same command again"
    )


def _sides(output: str) -> str:
    """Who wants what, from pip's own account of the conflict."""
    account = output.split("The conflict is caused by:", 1)[1].strip().split("\n\n")[0]
    lines = [line.strip() for line in account.splitlines() if line.strip()]
    said = []
    for line in lines:
        line = re.sub(r"^The user requested \(constraint\) (\S+?)==(\S+)", r"ComfyUI has \1 \2, which is kept", line)
        said.append(re.sub(r"^The user requested", "Candela requires", line).replace("depends on", "requires"))
    return "; ".join(dict.fromkeys(said))


def _last(output: str) -> str:
    errors = [line.strip() for line in output.splitlines() if line.strip()]
    wanted = [line for line in errors if line.startswith(("ERROR", "error", "WARNING: Retrying"))] or errors
    return " / ".join(wanted[-2:])[:500] or "it said nothing"
