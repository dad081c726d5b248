"""What a verified download costs beside curl: `python -m benchmarks.download`.

One file of random bytes, served by the tests' hub in a process of its own on this machine, is brought to the disk by
Candela (four connections, checked with sha256, moved into place) and by `curl -s` in turn; medians, and Candela's peak
of memory. Which comes first changes from pair to pair, and both begin with nothing left to write to the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY, FILE = "someone/large", "model.safetensors"
OURS = """
import sys, time
from pathlib import Path
from candela.install.sources import open_source
from candela.install.transfer import fetch
target = Path(sys.argv[2])
began = time.perf_counter()
source = open_source("hub")
(remote,) = source.files(sys.argv[1], [target.name])
digest = fetch(source, remote, target, lambda number: None)
seconds = time.perf_counter() - began
assert remote.algorithm == "sha256" and digest == remote.digest
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, peak / 1024)
"""


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """-> the address of a hub in another process."""
    command = [sys.executable, "-m", "tests.install.hub", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def write_random(path: Path, megabytes: int) -> None:
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))


def candela(url: str, target: Path) -> tuple[float, float]:
    """-> seconds, peak in MiB."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": ""}
    command = [sys.executable, "-c", OURS, REPOSITORY, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


def curl(url: str, target: Path) -> float:
    """-> seconds."""
    address = f"{url}/{REPOSITORY}/resolve/main/{FILE}"
    began = time.perf_counter()
    subprocess.run(["curl", "-s", "-L", "--fail", "-o", str(target), address], check=True)
    return time.perf_counter() - began


def measure(folder: Path, pairs: int, megabytes: int) -> dict[str, object]:
    write_random(folder / "root" / REPOSITORY / FILE, megabytes)
    target, load = folder / FILE, os.getloadavg()[0]
    times: dict[str, list[float]] = {"candela": [], "curl": []}
    peaks = []
    with serving(folder / "root") as url:
        for pair in range(pairs):
            for side in ("candela", "curl") if pair % 2 else ("curl", "candela"):
                os.sync()
                if side == "candela":
                    seconds, peak = candela(url, target)
                    peaks.append(peak)
                else:
                    seconds = curl(url, target)
                assert target.stat().st_size == megabytes << 20
                target.unlink()
                times[side].append(seconds)
                print(f"{side:8} {seconds:6.2f} s {megabytes / seconds:8.0f} MiB/s", file=sys.stderr, flush=True)
    medians = {side: statistics.median(values) for side, values in times.items()}
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load before": round(load, 2),
        "MiB": megabytes,
        "pairs": pairs,
        "median MiB/s": {side: round(megabytes / value) for side, value in medians.items()},
        "seconds": {side: [round(value, 2) for value in values] for side, values in times.items()},
        "speed as a part of curl's": round(medians["curl"] / medians["candela"], 3),
        "the same, pair by pair": [round(c / o, 2) for c, o in zip(times["curl"], times["candela"])],
        "peak MiB": round(max(peaks)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--size", type=int, default=2048, help="MiB")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile (default: the system's)")
    parser.add_argument("--out", type=Path, help="a JSON file for the result, which is printed otherwise")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        result = json.dumps(measure(Path(place), args.pairs, args.size), indent=1)
    if args.out:
        args.out.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    main()
