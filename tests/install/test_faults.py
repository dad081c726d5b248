"""What goes wrong on the way: never a bad file in place, always a message that names it, and a next run that works."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from candela.install.transfer import BLOCK, SEGMENT
from tests.install.answers import GOOD, STRANGER
from tests.install.conftest import INSTALL, LUMINA, Done, Machine, content, published_by, write_lumina, write_tensors
from tests.install.hub import Hub
from tests.install.test_killed import journal, run_until

WEIGHTS = f"cdn/{LUMINA}/transformer/diffusion_pytorch_model.safetensors"
NAME = "diffusion_pytorch_model.safetensors"
LARGE = 60_000_000  # bytes
AGAIN = "the same command"  # in every remedy that is nothing but patience


def in_place(machine: Machine) -> dict[str, str]:
    """What lies at its final name in the model's folder -> sha256."""
    return {name: digest for name, digest in content(machine.lumina).items() if ".candela-part" not in name}


def enlarge(hub: Hub) -> None:
    """The transformer gets eight segments: more than there are connections."""
    write_tensors(hub.root / LUMINA / "transformer" / "new", LARGE).replace(hub.root / LUMINA / "transformer" / NAME)
    hub.publish()


def assert_nothing_bad(machine: Machine, hub: Hub, done: Done) -> None:
    assert "Traceback" not in done.output
    assert set(in_place(machine).items()) <= set(published_by(hub.root / LUMINA).items())


def assert_whole(machine: Machine, hub: Hub, done: Done) -> None:
    assert done.code == 0, done.output
    assert in_place(machine) == published_by(hub.root / LUMINA)
    assert not list(machine.home.rglob("*.candela-part*"))


@dataclass(frozen=True)
class Case:
    """A fault for ever; `says`: parts of the message; `kept`: the large file was in place before."""

    begin: Callable[[Hub], object]
    says: tuple[str, ...]
    kept: bool = False
    code: int = 1
    environment: dict[str, str] = field(default_factory=dict)


def broken(kind: str, match: str = WEIGHTS, **details) -> Callable[[Hub], object]:
    return lambda hub: hub.fault(kind, match, **details)


FIRST, REST = 1000, 3_000_000  # bytes
CASES = {
    "a flipped bit": Case(broken("flip", after=FIRST, times=1),
                          (NAME, "sha256 is", "damaged", "Nothing of it was kept", AGAIN)),
    "a flipped bit in a small file": Case(broken("flip", "resolve/*/vae/config.json", after=5),
                                          ("config.json", "git-sha1 is", "damaged")),
    "a body that ends early": Case(broken("truncate", after=FIRST), ("localhost", "broke off", AGAIN)),
    "a connection that is reset": Case(broken("reset", after=FIRST), ("localhost", "broke off", AGAIN)),
    "no answer": Case(broken("reset", after=-1), ("localhost", "cannot be reached", AGAIN)),
    "another length": Case(broken("total", by=1000), ("20001082", "20000082", "another source")),
    "another length of a small file": Case(broken("length", "cdn/*/vae/*", by=9), ("100087 bytes", "100078 were")),
    "a stalled connection": Case(broken("stall", after=FIRST, seconds=60), ("stalled", "no byte for 1 s", AGAIN),
                                 environment={"CANDELA_TEST_BACKOFF": "0.1"}),
    "a file that is not there": Case(
        broken("status", "resolve/*/vae/*", status=404, code="EntryNotFound", message="Entry not found"),
        ("127.0.0.1", "vae/config.json", "404"), kept=True),
    "too many requests": Case(broken("status", status=429, headers={"Retry-After": "1"}), ("HTTP 429", NAME, AGAIN),
                              environment={"CANDELA_TEST_BACKOFF": "0.1"}),
    "too many requests for an hour": Case(broken("status", status=429, headers={"Retry-After": "3600"}),
                                          ("HTTP 429", "3600 s", AGAIN)),
    "a server's fault": Case(broken("status", status=500), ("HTTP 500", "localhost", NAME, AGAIN)),
    "an overloaded API": Case(broken("status", "api/*", status=503), ("HTTP 503", "127.0.0.1", AGAIN)),
    "redirects in a circle": Case(broken("redirect", "resolve/*/vae/*"), ("leads in a circle", "vae/config.json"),
                                  kept=True),
    "forbidden": Case(broken("status", status=403), ("HTTP 403", "localhost", NAME)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_told_and_the_next_run_goes_on(name, hub, machine):
    case = CASES[name]
    case.begin(hub)
    done = machine.install(**case.environment)
    assert done.code == case.code, done.output
    last = done.message[done.message.rindex("candela: ") :]
    for part in case.says:
        assert part in done.message
    assert not last.startswith("candela: note"), "the last word is the failure"
    assert_nothing_bad(machine, hub, done)
    hub.faults.clear()
    before = hub.sent[WEIGHTS]
    assert_whole(machine, hub, machine.install())
    assert not case.kept or hub.sent[WEIGHTS] == before


# Faults that pass, and how many bytes of the large file they make the server send again: a reset connection loses what
# was on its way, one that stalls the block that was not full.
TRANSIENT = {
    "a server's fault, once": (broken("status", status=500, times=1), 0),
    "a fault of the API, once": (broken("status", "api/*", status=502, times=1), 0),
    "a body that ends early, three times": (broken("truncate", after=REST, times=3), 0),
    "a reset, three times": (broken("reset", after=REST, times=3), 3 * REST),
    "a stall, once": (broken("stall", after=REST, seconds=60, times=1), BLOCK),
    "a length that is wrong for one part": (broken("length", by=1000, times=1), 0),
    "one in three of all answers": (broken("truncate", after=FIRST, chance=0.3), 0),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_passes_is_not_worth_stopping_for(name, hub, machine):
    begin, lost = TRANSIENT[name]
    begin(hub)
    machine.backoff = " ".join(["0.05"] * 20)
    assert_whole(machine, hub, machine.install())
    assert hub.sent[WEIGHTS] <= 20_000_082 + lost + 1000  # what an error says of itself


def test_a_server_that_wants_to_be_left_alone_is(hub, machine):
    hub.fault("status", WEIGHTS, status=429, headers={"Retry-After": "2"}, times=1)
    began = time.monotonic()
    done = machine.install()
    assert_whole(machine, hub, done)
    assert time.monotonic() - began > 2
    assert "HTTP 429" in done.message
    assert "in 2 s" in done.message


def test_a_file_that_is_damaged_at_the_source(hub, machine):
    """It is not what the hub's own listing says."""
    file = hub.root / LUMINA / "transformer" / NAME
    good = file.read_bytes()
    with file.open("r+b") as opened:
        opened.seek(12_345_678)
        opened.write(bytes([good[12_345_678] ^ 4]))
    done = machine.install()
    assert done.code == 1, done.output
    for part in (NAME, "sha256 is", "damaged", "another source"):
        assert part in done.message
    assert f"transformer/{NAME}" not in in_place(machine)
    assert not list(machine.lumina.rglob(f"{NAME}.candela-part"))
    file.write_bytes(good)
    assert_whole(machine, hub, machine.install())


# --- who may ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "says"),
    [("", ("is gated", "no token was given", "HF_TOKEN", f"https://huggingface.co/{LUMINA}")),
     (STRANGER, ("is gated", "has not been let in", f"https://huggingface.co/{LUMINA}")),
     ("hf_wrong0token", ("refuses the token", "HTTP 401", "HF_TOKEN"))],
)  # fmt: skip
def test_gated(token, says, hub, machine):
    hub.gated.add(LUMINA)
    done = machine.install(HF_TOKEN=token)
    assert done.code == 1, done.output
    for part in says:
        assert part in done.message
    assert not token or token not in done.output
    assert in_place(machine) == {}
    done = machine.install(HF_TOKEN=GOOD)
    assert_whole(machine, hub, done)
    assert GOOD not in done.output
    everything = b"".join(p.read_bytes() for p in machine.home.rglob("*.json") if p.parent == machine.home / "data")
    assert GOOD.encode() not in everything
    assert f"Bearer {GOOD}" in hub.authorizations["127.0.0.1"]
    assert "localhost" not in hub.authorizations, "a signed link needs no token"


@pytest.mark.parametrize(("token", "status"), [("", "401"), (GOOD, "404")])
def test_an_unknown_repository(token, status, hub, machine):
    done = machine.install("no/body", HF_TOKEN=token)
    assert done.code == 1, done.output
    for part in ("no/body", f"HTTP {status}", "127.0.0.1"):
        assert part in done.message
    assert "Traceback" not in done.output
    assert not list(machine.home.rglob("*.safetensors*"))


# --- the network --------------------------------------------------------------------------------


def test_nobody_there(hub, machine):
    closed = machine.endpoint.rpartition(":")[0] + ":9"
    done = machine.install(HF_ENDPOINT=closed)
    assert done.code == 1, done.output
    for part in (closed.removeprefix("http://"), "cannot be reached", "refused", "HF_ENDPOINT"):
        assert part in done.message
    assert_nothing_bad(machine, hub, done)


@pytest.fixture
def certificate(tmp_path) -> tuple[Path, Path]:
    if not shutil.which("openssl"):
        pytest.skip("no openssl, which makes the certificate: TLS IS NOT TESTED")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_a_certificate_that_nobody_signed(root, tmp_path, certificate):
    write_lumina(root)
    (tmp_path / "home").mkdir()
    with Hub(root, certificate=certificate) as hub:
        machine = Machine(tmp_path / "home", hub.url)
        done = machine.install()
        assert done.code == 1, done.output
        for part in (f"127.0.0.1:{hub.port}", "certificate", "REQUESTS_CA_BUNDLE"):
            assert part in done.message
        assert hub.requests == []
        assert in_place(machine) == {}
        assert_whole(machine, hub, machine.install(REQUESTS_CA_BUNDLE=str(certificate[0])))


def test_a_signed_link_that_expires_on_the_way(hub, machine):
    enlarge(hub)
    hub.speed, hub.expiry = 40e6, 0.3
    done = machine.install()
    assert_whole(machine, hub, done)
    resolved = [request for request in hub.requests if request[1] == WEIGHTS.replace("cdn", "resolve", 1)]
    assert len(resolved) > 1, "no link expired, so nothing was tested"
    assert hub.sent[WEIGHTS] < LARGE + 10_000, "but for the refusals"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_server_without_ranges(damaged, hub, machine):
    """The second run reads the whole answer again, and writes what it has not."""
    hub.ranges, hub.speed = True, 40e6
    enlarge(hub)
    assert run_until(machine, hub, 50_000_000)
    (part,) = machine.home.rglob("*.candela-part")
    if damaged:
        with part.open("r+b") as file:
            file.seek(max(journal(part.with_name(part.name + ".journal"))) * SEGMENT)
            file.write(bytes(100))
    hub.ranges, hub.speed = False, 0
    done = machine.install()
    assert_whole(machine, hub, done)
    assert "cannot send parts" in done.message


# --- what changes between two runs --------------------------------------------------------------


def test_an_interrupted_install_keeps_its_revision(hub, machine):
    """`main` moves, and what is finished is still one model, not two halves."""
    old, wanted = hub.commit(LUMINA), published_by(hub.root / LUMINA)
    hub.speed = 20e6
    assert run_until(machine, hub, 10_000_000)
    write_tensors(hub.root / LUMINA / "transformer" / "new", 20_000_000, seed="new").replace(
        hub.root / LUMINA / "transformer" / NAME
    )
    hub.publish()
    assert hub.commit(LUMINA) != old
    hub.speed = 0
    done = machine.install()
    assert done.code == 0, done.output
    assert in_place(machine) == wanted
    assert old in (machine.home / "data" / "manifest.json").read_text()


def test_a_file_that_changes_at_a_plain_server_between_two_runs(hub, machine):
    """There is no commit to hold on to: what had arrived of the old file is not mixed with the new one."""
    hub.speed = 20e6
    began = hub.bodies
    process = machine.start(*INSTALL, "--from", f"{hub.url}/plain")
    while hub.bodies - began < 15_000_000 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(machine.home.rglob("*.candela-part"))
    write_tensors(hub.root / LUMINA / "transformer" / NAME, 20_000_000, seed="new")
    hub.speed = 0
    assert_whole(machine, hub, machine.install("lumina-image-2", "--from", f"{hub.url}/plain"))


def test_ctrl_c_keeps_what_has_arrived(hub, machine):
    hub.speed = 5e6
    process = machine.start(*INSTALL)
    while hub.bodies < 9_000_000 and process.poll() is None:
        time.sleep(0.005)
    hub.speed = 1e6  # the rest takes 11 seconds: the signal comes in time on a busy machine too
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    hub.speed = 0
    assert_whole(machine, hub, machine.install())


# --- disks --------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted ({made.stderr.strip()}): A FULL DISK IS NOT TESTED")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs: A FULL DISK IS NOT TESTED")


@linux
def test_a_disk_that_is_too_small_is_told_before_a_byte_is_written(hub, machine):
    with small_disk(machine.home / "data", 50):
        done = machine.install()
        assert done.code == 1, done.output
        for part in (str(machine.home / "data"), "0.05 GB free", "0.02 GB more", "Nothing was written"):
            assert part in done.message
        assert content(machine.home / "data") == {}
    assert not hub.asked("cdn/*")


@linux
def test_a_disk_that_fills_up_on_the_way(hub, machine):
    enlarge(hub)
    with small_disk(machine.home / "data", 220) as disk:
        hub.speed = 20e6
        process = machine.start(*INSTALL)
        while hub.bodies < 40_000_000 and process.poll() is None:
            time.sleep(0.005)
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1 << 20))
        output, _ = process.communicate(timeout=30)
        done = Done(process.returncode, output)
        assert done.code == 1, output
        for part in ("is full", str(machine.lumina), "0.06 GB", "it goes on where it stopped"):
            assert part in done.message
        assert_nothing_bad(machine, hub, done)
        (disk / "filler").unlink()
        (part,) = disk.rglob("*.candela-part")
        had = set(journal(part.with_name(part.name + ".journal")))
        assert had
        hub.speed = 0
        hub.requests.clear()
        assert_whole(machine, hub, machine.install())
        again = {int(r.removeprefix("bytes=").split("-")[0]) // SEGMENT for _, _, r in hub.asked(WEIGHTS)}
        assert again == set(range(-(-LARGE // SEGMENT))) - had
