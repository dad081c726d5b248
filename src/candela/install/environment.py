"""Another Python's installed distributions, and what they need of each other. Reading one changes nothing in it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from candela.errors import InstallError

# The first of a name on sys.path is the one that is imported. Runs on any Python 3, to say that it is too old.
PROBE = """
import json, sys, platform
from importlib import metadata
found = []
for one in metadata.distributions():
    name = one.metadata["Name"]
    if name:
        found.append((name, one.version, one.requires or []))
implementation = sys.implementation.version
print(json.dumps({"distributions": found, "markers": {
    "implementation_name": sys.implementation.name,
    "implementation_version": "%d.%d.%d" % implementation[:3],
    "os_name": __import__("os").name,
    "platform_machine": platform.machine(),
    "platform_release": platform.release(),
    "platform_system": platform.system(),
    "platform_version": platform.version(),
    "python_full_version": platform.python_version(),
    "platform_python_implementation": platform.python_implementation(),
    "python_version": ".".join(platform.python_version_tuple()[:2]),
    "sys_platform": sys.platform,
}}))
"""


@dataclass(frozen=True)
class Distribution:
    """One that is installed. `requires`: as its metadata has them, markers included."""

    name: str
    version: str
    requires: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Need:
    """Somebody requires something."""

    who: str
    requirement: Requirement

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    def holds(self, version: str | None) -> bool:
        return version is not None and self.requirement.specifier.contains(version, prereleases=True)

    def __str__(self) -> str:
        return f"{self.who} requires {self.requirement.name}{self.requirement.specifier}"


@dataclass(frozen=True)
class Environment:
    """A Python and what is installed in it.

    Attributes:
        markers: what a requirement's condition after its semicolon is compared with.
        distributions: by canonical name.
    """

    python: Path
    markers: dict[str, str]
    distributions: dict[str, Distribution] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return self.markers["python_full_version"]

    def installed(self, name: str) -> str | None:
        """The version of the distribution of that name."""
        found = self.distributions.get(canonicalize_name(name))
        return found.version if found else None

    def needs(self, who: str, requirements: Iterable[str]) -> list[Need]:
        """Those of `requirements` that apply here. What is no valid requirement cannot be held against anybody."""
        found = []
        for text in requirements:
            try:
                requirement = Requirement(text)
                applies = requirement.marker is None or requirement.marker.evaluate({**self.markers, "extra": ""})
            except (InvalidRequirement, InvalidVersion, UndefinedComparison, UndefinedEnvironmentName, KeyError):
                continue  # the last one is packaging's up to 25
            if applies:
                found.append(Need(who, requirement))
        return found

    def needs_of_installed(self, without: Iterable[str] = ()) -> list[Need]:
        """What the distributions require, those named `without` (canonical) left out."""
        others = [one for name, one in self.distributions.items() if name not in set(without)]
        return [need for one in others for need in self.needs(str(one), one.requires)]

    def unmet(self, needs: list[Need]) -> list[Need]:
        """Those of `needs`, and of what these need in turn, that do not hold here."""
        broken, seen, left = [], set(), list(needs)
        while left:
            need = left.pop()
            if not need.holds(self.installed(need.name)):
                broken.append(need)
            elif need.name not in seen:
                seen.add(need.name)
                one = self.distributions[need.name]
                left += self.needs(str(one), one.requires)
        return broken


def quiet_environ() -> dict[str, str]:
    """This process's environment for another Python: none of our own paths, and nothing is compiled on the way."""
    own = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    return {**{k: v for k, v in os.environ.items() if k not in own}, "PYTHONDONTWRITEBYTECODE": "1"}


def read_environment(python: Path) -> Environment:
    """What `python` has installed.

    Raises:
        InstallError: it does not run.
    """
    try:
        with tempfile.TemporaryDirectory() as empty:  # the current folder is the first place that Python imports from
            run = subprocess.run(
                [str(python), "-c", PROBE], cwd=empty, env=quiet_environ(), capture_output=True, text=True, timeout=120
            )
        answer = json.loads(run.stdout) if run.returncode == 0 else None
        problem = run.stderr.strip()[-300:]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        answer, problem = None, str(error)
    if answer is None:
        raise InstallError(
            f"ComfyUI's Python {python} does not run: {problem}. If ComfyUI is started with another one, name it: "
            "COMFYUI_PYTHON=/path/to/python"
        )
    return Environment(python, answer["markers"], _distributions(answer["distributions"]))


def _distributions(found: list[tuple[str, str, list[str]]]) -> dict[str, Distribution]:
    distributions: dict[str, Distribution] = {}
    for name, version, requires in found:
        try:
            Version(version)
        except (InvalidVersion, TypeError):  # no version that could be compared with anything
            continue
        distributions.setdefault(canonicalize_name(name), Distribution(name, version, tuple(requires)))
    return distributions


def requirement_lines(file: Path) -> list[str]:
    """The requirements in a requirements.txt. Options, links and paths say nothing about versions."""
    lines = (line.split(" #")[0].strip() for line in file.read_text("utf-8-sig", errors="replace").splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def broken_by(changes: Mapping[str, str], needs: list[Need], environment: Environment) -> list[Need]:
    """Those of `needs` that hold now and would not hold with `changes`: canonical name -> version."""
    return [
        need
        for need in needs
        if need.name in changes and need.holds(environment.installed(need.name)) and not need.holds(changes[need.name])
    ]
