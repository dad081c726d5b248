"""Files that this user may not read, as a user who is not root."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from candela.checkpoints import identify, read_checkpoint
from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.errors import DamagedFile

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
NOBODY = 65534


@pytest.fixture
def model():
    """A model below a folder that everybody may enter, which pytest's own is not."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    yield shutil.copytree(DEMO_FOLDER, base / "model")
    shutil.rmtree(base)


@contextmanager
def without_permission(path: Path):
    """`path` may not be read, by nobody but root; and this process is not root."""
    mode, root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0)
    try:
        if root:
            try:
                os.seteuid(NOBODY)
            except OSError as error:
                pytest.skip(f"root cannot become another user here: {error}")
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(mode)


@pytest.mark.parametrize("read", [read_checkpoint, identify])
@pytest.mark.parametrize(
    ("closed", "named"),
    [
        (".", "model_index.json"),
        ("model_index.json", "model_index.json"),
        ("transformer", "transformer/config.json"),
        ("tokenizer", "tokenizer/tokenizer_config.json"),
        ("vae/config.json", "vae/config.json"),
        ("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    ],
)
def test_the_file_is_named(model, read, closed, named):
    with without_permission(model / closed), pytest.raises(DamagedFile) as refused:
        read(model)
    assert str(refused.value) == f"{model / named} cannot be read: Permission denied. Check its permissions"


def test_a_parent_folder(model):
    with without_permission(model.parent), pytest.raises(DamagedFile, match="cannot be read: Permission denied"):
        identify(model)
