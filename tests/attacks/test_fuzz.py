"""A few thousand mutations; `make fuzz` runs more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.attacks.fuzz import FORMATS, HEADERS, seeds


@pytest.mark.parametrize("form", FORMATS)
def test_mutations_end_in_our_error_or_an_answer(form):
    run = [sys.executable, "-m", "tests.attacks.fuzz", form, "2000", "--blind"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0 and "nothing escaped" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("form", HEADERS)
def test_the_seeds_reach_what_is_fuzzed(form, tmp_path):
    from candela.checkpoints.contents import read_contents

    found = set()
    for data in seeds(form):
        (tmp_path / "seed").write_bytes(data)
        found |= {each.architecture.component for each in read_contents(tmp_path / "seed").found}
    assert found == {"transformer", "text_encoder", "vae", "controlnet"}
