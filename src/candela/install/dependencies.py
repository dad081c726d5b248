"""What ComfyUI's Python would have to be given for the nodes, and whether that harms anything: found out before
anything is changed. torch, and what is compiled against it, is never touched.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from candela.errors import Conflict, InstallError
from candela.install import pip
from candela.install.environment import Environment, Need, broken_by, read_environment, requirement_lines

HELD = re.compile(r"(torch|pytorch-|triton|xformers|nvidia-|cuda-|rocm|flash-attn|sageattention)|numpy$")


@dataclass(frozen=True)
class Requirements:
    """What the pack needs, as its own files say.

    Attributes:
        python: a version specifier.
        brought: by ComfyUI itself: they must be there, and are never installed.
        own: what pip may install.
    """

    python: str
    brought: tuple[str, ...]
    own: tuple[str, ...]


@dataclass(frozen=True)
class Packages:
    """What pip would do. Names are canonical: lower case, with hyphens.

    Attributes:
        new: name -> version.
        upgraded: name -> version before and after.
    """

    new: dict[str, str] = field(default_factory=dict)
    upgraded: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def versions(self) -> dict[str, str]:
        return {**self.new, **{name: after for name, (_, after) in self.upgraded.items()}}


def read_requirements(project: Path, listed: Path) -> Requirements:
    """From a pyproject.toml, and from the requirements.txt beside it, which leaves out what ComfyUI brings."""
    about = tomllib.loads(project.read_text("utf-8"))["project"]
    own = requirement_lines(listed)
    return Requirements(
        about["requires-python"], tuple(line for line in about["dependencies"] if line not in own), tuple(own)
    )


def needs_of_folder(environment: Environment, comfyui: Path, own: Path) -> list[Need]:
    """What ComfyUI's requirements.txt and those of the other custom nodes ask for: no metadata says it."""
    files = [comfyui / "requirements.txt", *sorted(comfyui.glob("custom_nodes/*/requirements.txt"))]
    found = []
    for file in files:
        if file.is_file() and file.parent != own and not file.parent.name.endswith(".disabled"):
            who = "ComfyUI" if file.parent == comfyui else f"custom_nodes/{file.parent.name}"
            found += environment.needs(f"{who} (requirements.txt)", requirement_lines(file))
    return found


def check_brought(environment: Environment, requirements: Requirements) -> None:
    """Raises: InstallError: Python or torch is too old or missing, which is ComfyUI's own matter."""
    python = environment.python
    if not SpecifierSet(requirements.python).contains(environment.version, prereleases=True):
        raise InstallError(
            f"ComfyUI's Python is {environment.version} ({python}); Candela needs {requirements.python}, as diffusers "
            "does. Nothing was changed. Give ComfyUI a newer Python: its readme says how to install it anew"
        )
    for need in environment.needs("Candela", requirements.brought):
        found = environment.installed(need.name)
        if not need.holds(found):
            there = f"{need.name} {found} is installed" if found else f"there is no {need.name}"
            raise InstallError(
                f"{need}; {there} in ComfyUI's Python ({python}), and Candela never changes it. Nothing was changed. "
                + (f"Update ComfyUI with its {need.name}" if found else "Does ComfyUI start? Install what it needs")
                + f": {python} -m pip install --upgrade -r requirements.txt in ComfyUI's folder"
            )


def plan_packages(environment: Environment, requirements: Requirements, comfyui: Path, own: Path) -> Packages:
    """What pip would do, by a dry run of its own that changes nothing. No network where all is there already.

    Raises:
        Conflict: somebody else requires what would be replaced.
        SourceError, InstallError: the index cannot be reached; Python, torch or pip is missing or too old.
    """
    check_brought(environment, requirements)
    wanted = environment.needs("Candela", requirements.own)
    if not environment.unmet(wanted):
        return Packages()
    kept = [f"{one.name}=={one.version}" for name, one in environment.distributions.items() if HELD.match(name)]
    found = pip.resolve(environment, [str(need.requirement) for need in wanted], kept)
    new: dict[str, str] = {}
    upgraded: dict[str, tuple[str, str]] = {}
    for metadata in found:
        name, version = canonicalize_name(metadata["name"]), metadata["version"]
        if (before := environment.installed(name)) is None:
            new[name] = version
        else:
            upgraded[name] = (before, version)
    packages = Packages(new, upgraded)
    for metadata in found:
        wanted += environment.needs(f"{metadata['name']} {metadata['version']}", metadata.get("requires_dist", []))
    _refuse_conflicts(environment, packages, wanted, comfyui, own)
    return packages


def _refuse_conflicts(
    environment: Environment, packages: Packages, wanted: list[Need], comfyui: Path, own: Path
) -> None:
    after = packages.versions
    others = environment.needs_of_installed(without=after) + needs_of_folder(environment, comfyui, own)
    told = []
    for need in broken_by(after, others, environment):
        now = environment.installed(need.name)
        asking = next((str(one) for one in wanted if one.name == need.name and not one.holds(now)), None)
        told.append(f"{need}; {asking or f'Candela would bring {need.name} {after[need.name]}'}; "
                    f"installed: {need.name} {now}")  # fmt: skip
    if told:
        raise Conflict(
            "the nodes cannot be installed without breaking what is there:\n"
            + "\n".join(dict.fromkeys(told))
            + f"\nNothing was changed. Update or remove what stands first in each line (ComfyUI's Python is "
            f"{environment.python}), or give Candela a ComfyUI of its own"
        )


def install_packages(environment: Environment, packages: Packages) -> None:
    """Does what was planned, then looks whether torch and its family are what they were.

    Raises:
        SourceError, InstallError: pip failed, or something was changed that must not be.
    """
    if not packages.versions:
        return
    pip.install(environment, packages.versions)
    after = read_environment(environment.python)
    changed = [
        f"{one} became {after.distributions.get(name, 'missing')}"
        for name, one in environment.distributions.items()
        if HELD.match(name) and after.distributions.get(name) != one
    ]
    if changed:
        raise InstallError(
            f"pip changed what it must not: {', '.join(changed)}. Please report it, and repair ComfyUI: "
            f"{environment.python} -m pip install --upgrade -r requirements.txt in its folder"
        )


def remove_packages(
    environment: Environment, brought: dict[str, str], upgraded: dict[str, str], comfyui: Path, own: Path
) -> dict[str, str]:
    """Takes away what pip brought for the nodes: `brought` is name -> version then, `upgraded` those of them that
    were there before -> version before. What somebody changed since is theirs.

    -> name -> who needs it now, of what had to stay.

    Raises:
        SourceError, InstallError: pip failed; an older version cannot be fetched.
    """
    mine = {name for name, version in brought.items() if environment.installed(name) == version}
    others = needs_of_folder(environment, comfyui, own)
    staying: dict[str, str] = {}
    while True:  # what stays may itself need more
        going = mine - upgraded.keys() - staying.keys()
        back = {name: upgraded[name] for name in mine & upgraded.keys() - staying.keys()}
        needs = others + environment.needs_of_installed(without=going | back.keys())
        held = [need for need in needs if need.name in going] + broken_by(back, needs, environment)
        if not held:
            break
        staying |= {need.name: str(need) for need in held}
    pip.install(environment, back)
    pip.uninstall(environment, sorted(going))
    return staying
