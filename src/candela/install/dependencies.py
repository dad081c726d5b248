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
from candela.install.comfyui import quoted
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
        versions: name -> version that it would install.
        upgraded: name -> version now, of those that are there in another one.
    """

    versions: dict[str, str] = field(default_factory=dict)
    upgraded: dict[str, str] = field(default_factory=dict)


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


def check_brought(environment: Environment, requirements: Requirements, comfyui: Path) -> None:
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
            first = "Update what ComfyUI needs" if found else "Does ComfyUI start? Install what it needs"
            raise InstallError(
                f"{need}; {there} in ComfyUI's Python, and Candela never changes it. Nothing was changed. {first}: "
                f"{quoted(python)} -m pip install --upgrade -r {quoted(comfyui / 'requirements.txt')}"
            )


def plan_packages(environment: Environment, requirements: Requirements, comfyui: Path, own: Path) -> Packages:
    """What pip would do, by a dry run of its own that changes nothing. No network where all is there already.

    Raises:
        Conflict: somebody else requires what would be replaced.
        SourceError, InstallError: the index cannot be reached; Python, torch or pip is missing or too old.
    """
    check_brought(environment, requirements, comfyui)
    wanted = environment.needs("Candela", requirements.own)
    if not environment.unmet(wanted):
        return Packages()
    kept = [f"{one.name}=={one.version}" for name, one in environment.distributions.items() if HELD.match(name)]
    found = pip.resolve(environment, [str(need.requirement) for need in wanted], kept)
    after: dict[str, str] = {canonicalize_name(metadata["name"]): metadata["version"] for metadata in found}
    before = {name: environment.installed(name) for name in after}
    packages = Packages(after, {name: version for name, version in before.items() if version})
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

    -> name -> why, of what had to stay: "other 1.2 requires gguf".

    Raises:
        SourceError, InstallError: pip failed, or its index cannot be reached. The packages are as before.
    """
    mine = {name for name, version in brought.items() if environment.installed(name) == version}
    others = needs_of_folder(environment, comfyui, own)
    staying: dict[str, str] = {}
    going, back = _removable(environment, mine, upgraded, others, staying)
    try:
        pip.install(environment, back)
    except pip.NotOffered as error:
        staying |= {name: f"{name} {version} cannot be put back: {error}" for name, version in back.items()}
        going, _ = _removable(environment, mine, upgraded, others, staying)
    pip.uninstall(environment, sorted(going))
    return staying


def _removable(
    environment: Environment, mine: set[str], upgraded: dict[str, str], others: list[Need], staying: dict[str, str]
) -> tuple[set[str], dict[str, str]]:
    """-> what may go, and what goes back to its version before. Adds to `staying` what somebody needs."""
    while True:  # what stays may itself need more
        going = mine - upgraded.keys() - staying.keys()
        back = {name: upgraded[name] for name in mine & upgraded.keys() - staying.keys()}
        needs = others + environment.needs_of_installed(without=going | back.keys())
        held = [need for need in needs if need.name in going] + broken_by(back, needs, environment)
        if not held:
            return going, back
        staying |= {need.name: str(need) for need in held}
