"""Installers that are killed, lose what they wrote, or run beside each other."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from candela.install.transfer import SEGMENT
from tests.install.conftest import INSTALL, LUMINA, Machine, weights, write_lumina
from tests.install.hub import Hub

AGAIN = 32_000_000  # bytes that may be sent again for each kill
SHAPES = {"one large file": [150_000_000], "many files": [4_000_000 + 500_000 * (k % 5) for k in range(20)]}


def journal(path) -> list[int]:
    """The segments that an unfinished download says it has; none without a journal."""
    lines = path.read_text().split("\n") if path.is_file() else [""]
    return [int(line.split()[0]) for line in lines[1:] if line]


def kept(folder) -> int:
    """Bytes of weights that a next run need not fetch: those in place, and whole segments of those under way."""
    files = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    return files + sum(SEGMENT * len(journal(p)) for p in folder.rglob("*.candela-part.journal"))


def run_until(machine: Machine, hub: Hub, number: int) -> bool:
    """Installs, and kills the installer once `number` bytes of files have gone out; -> was it killed?"""
    began = hub.bodies
    process = machine.start(*INSTALL)
    while process.poll() is None and hub.bodies - began < number:
        time.sleep(0.002)
    killed = process.poll() is None
    if killed:
        process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert killed or process.returncode == 0, output
    return killed


@pytest.fixture(params=SHAPES)
def slow_hub(request, root):
    write_lumina(root, transformer=SHAPES[request.param])
    with Hub(root) as hub:
        hub.page, hub.speed = 50, 100e6
        yield hub


@pytest.mark.soak
def test_ten_kills_at_random_moments(slow_hub, tmp_path, capsys):
    """With both shapes of a model, twenty. SEED=... draws other moments."""
    hub, seed = slow_hub, int(os.environ.get("SEED", 1))
    machine = Machine(tmp_path / "home", hub.url)
    wanted = weights(hub.root / LUMINA)
    total = sum(p.stat().st_size for p in (hub.root / LUMINA).rglob("*") if p.is_file())
    draw = random.Random(seed)
    moments = sorted(draw.uniform(0, total) for _ in range(10))
    kills, lost = 0, []
    for moment in moments:
        before, sent = kept(machine.lumina), hub.bodies
        kills += run_until(machine, hub, max(0, int(moment) - before))
        time.sleep(0.05)  # what the server noticed last
        lost.append(hub.bodies - sent - (kept(machine.lumina) - before))
        assert set(weights(machine.lumina).items()) <= set(wanted.items()), "a file in place is always whole"
    done = machine.install()
    assert done.code == 0, done.output
    assert weights(machine.lumina) == wanted
    assert not list(machine.home.rglob("*.candela-part*"))
    with capsys.disabled():
        print(
            f"\nSEED={seed}: {kills} kills of {total / 1e6:.0f} MB; sent {hub.bodies / 1e6:.0f} MB; "
            f"lost by a kill at most {max(lost) / 1e6:.1f} MB"
        )
    assert kills == 10
    assert max(lost) <= AGAIN
    assert hub.bodies <= total + kills * AGAIN


@pytest.mark.parametrize("damage", ["zeroed", "cut off", "gone"])
def test_a_power_cut_that_kept_the_journal_and_not_the_data(hub, machine, damage):
    """Nothing but what is damaged, and what had not arrived, is fetched again."""
    os.replace(hub.root / LUMINA, hub.root / "old")
    write_lumina(hub.root, transformer=(60_000_000,))
    hub.publish()
    hub.speed = 40e6
    assert run_until(machine, hub, 50_000_000)
    (part,) = machine.home.rglob("*.candela-part")
    listed = journal(part.with_name(part.name + ".journal"))
    assert len(listed) >= 3
    victims = {max(listed)}
    if damage == "zeroed":
        with part.open("r+b") as file:
            file.seek(max(listed) * SEGMENT + 5_000_000)
            file.write(bytes(4096))
    elif damage == "cut off":
        os.truncate(part, max(listed) * SEGMENT + 1000)
    else:
        part.unlink()
        victims = set(listed)
    hub.speed = 0
    hub.requests.clear()
    done = machine.install()
    assert done.code == 0, done.output
    assert weights(machine.lumina) == weights(hub.root / LUMINA)
    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for _, _, asked in hub.asked("cdn/*/transformer/*")]
    expected = set(range(-(-60_000_000 // SEGMENT))) - set(listed) | victims
    assert sorted(start // SEGMENT for start in starts) == sorted(expected)


def test_eight_installers_at_once(hub, machine):
    """One of them downloads; the others wait, and find that nothing is left to do."""
    hub.speed = 20e6
    running = [machine.start(*INSTALL) for _ in range(8)]
    outputs = [process.communicate(timeout=90)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 8, outputs
    total = sum(p.stat().st_size for p in machine.lumina.rglob("*") if p.is_file())
    assert total <= hub.bodies <= 1.05 * total
    assert weights(machine.lumina) == weights(hub.root / LUMINA)
