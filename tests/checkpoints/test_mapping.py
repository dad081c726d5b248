"""Leases are looked after also where memory is short: children under a limit of the system's."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is mapped elsewhere")

COMMON = """
import resource, subprocess, sys, threading, time
from pathlib import Path
from candela.checkpoints import mapping

def limited(limit):
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

def size():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize:"))

def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "candela-leases"]

first, second = (Path(argument) for argument in sys.argv[1:])
data = mapping.mapped(first)
if data is None:
    print("no lease"); sys.exit()
"""

SHORT_OF_MEMORY = """
program = "import sys; input(); open(sys.argv[1], 'wb').write(b'short'); print('written')"
writer = subprocess.Popen(
    [sys.executable, "-c", program, str(first)],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)
other = mapping.mapped(second)
limited(size() + (1 << 20))  # what Python itself needs
writer.stdin.write("\\n"); writer.stdin.flush()
time.sleep(4 * mapping.PERIOD)
failing, waiting = len(watchers()), writer.poll() is None
limited(resource.RLIM_INFINITY)
assert failing == 1 and waiting, (failing, waiting)
assert writer.communicate(timeout=20)[0] == "written\\n"
assert first.read_bytes() == b"short"
assert data.int().sum().item() == 7 * len(data) and len(data) == 150_000_123
subprocess.run([sys.executable, "-c", "import sys; open(sys.argv[1], 'wb')", str(second)], check=True, timeout=20)
assert other.int().sum().item() == 9 * len(other) and len(other) == 5_000_000
del data, other
time.sleep(3 * mapping.PERIOD)
assert not watchers() and not mapping._watching and not mapping._leased
print("unharmed")
"""

WITHOUT_A_THREAD = """
del data
time.sleep(3 * mapping.PERIOD)
assert not watchers() and not mapping._watching
limited(size() + (60 << 20))
threading.stack_size(64 << 20)
assert mapping.mapped(second) is None
limited(resource.RLIM_INFINITY)
assert not mapping._leased and not mapping._watching
again = mapping.mapped(second)
assert again is not None and len(watchers()) == 1
print("unharmed")
"""

AFTER_THE_SYSTEM_S_PATIENCE = """
second.write_text("0")
mapping.PATIENCE = second
writer = subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1], 'wb')", str(first)])
limit = time.monotonic() + 20
while mapping._leased:
    assert time.monotonic() < limit and writer.poll() is None
    time.sleep(0.05)
assert writer.poll() is None  # the lease was not given back, as nothing was copied
del data
assert writer.wait(20) == 0
print("unharmed")
"""


@pytest.mark.parametrize(
    "story",
    [SHORT_OF_MEMORY, WITHOUT_A_THREAD, AFTER_THE_SYSTEM_S_PATIENCE],
    ids=["no room for the copy", "no thread", "too late"],
)
def test_leases_are_looked_after_when_there_is_memory_again(tmp_path, story):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"\x07" * 150_000_123)  # three pieces
    second.write_bytes(b"\x09" * 5_000_000)
    command = [sys.executable, "-c", COMMON + story, str(first), str(second)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"ended with {done.returncode} (-7 is SIGBUS): {done.stderr}"
    if "no lease" in done.stdout:
        pytest.skip("this file system grants no leases, so nothing is mapped")
    assert "unharmed" in done.stdout
