"""Z-Image Turbo and the nodes onto this machine, from a clone in which nothing is installed yet.

    python scripts/install_z_image.py [--comfyui DIR] [--from SOURCE] [--precision NAME] [--dry-run] [--yes]

The same as `candela install z-image-turbo`, with the same options. Where Candela is not installed, the little that
installing needs (no torch) goes into build/installer, beside this script's folder.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What `candela install` imports, module -> package.
NEEDS = {
    "typer": "typer", "rich": "rich", "requests": "requests", "filelock": "filelock", "platformdirs": "platformdirs",
    "packaging": "packaging", "yaml": "pyyaml",
}  # fmt: skip


def python():
    """-> a Python that has all of it: that of `make`, this one, or one made for it."""
    if (sys.version_info.major, sys.version_info.minor) < (3, 11):
        sys.exit(f"Candela needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: python3.12 {sys.argv[0]}")
    below = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    if (ROOT / ".venv" / ".ready").is_file():
        return ROOT / ".venv" / below
    if all(importlib.util.find_spec(module) for module in NEEDS):
        return Path(sys.executable)
    installer = ROOT / "build" / "installer"
    if not (installer / ".ready").is_file():
        print(f"Preparing the installer in {installer} (half a minute, once)", file=sys.stderr)
        pip = [installer / below, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in ([sys.executable, "-m", "venv", installer],
                        [*pip, "-c", ROOT / "constraints.txt", *NEEDS.values()]):  # fmt: skip
            if subprocess.run(command).returncode:
                ran = shlex.join(map(str, command))
                sys.exit(f"The installer could not be prepared; the message above says why. It was: {ran}")
        (installer / ".ready").touch()
    return installer / below


if __name__ == "__main__":
    source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    arguments = [str(python()), "-m", "candela", "install", "z-image-turbo", *sys.argv[1:]]
    environment = {**os.environ, "PYTHONPATH": source}
    if os.name == "posix":  # Ctrl-C reaches the installer itself, and it alone
        os.execve(arguments[0], arguments, environment)
    try:
        sys.exit(subprocess.run(arguments, env=environment).returncode)
    except KeyboardInterrupt:
        sys.exit(130)
