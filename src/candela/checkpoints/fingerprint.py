"""A few bytes that tell whether a model's files are those of another time: a record names files, not where they lie."""

from __future__ import annotations

import hashlib
import json
import os

from candela.checkpoints.checkpoint import Checkpoint
from candela.checkpoints.headers.header import open_regular

SAMPLE = 1 << 16  # bytes; the whole of a large model would take a minute to read


def fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 of the components' classes and configurations, and of the size, beginning, middle and end of each of their
    weight files: the same wherever they lie, and another where a model was trained further or stored otherwise.

    Raises:
        DamagedFile, OSError: a weight file that cannot be read.
    """
    digest = hashlib.sha256()
    for name, part in sorted(checkpoint.parts.items()):
        digest.update(json.dumps([name, part.class_name, part.config], sort_keys=True, default=str).encode())
        for path in part.files:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(size.to_bytes(8, "little"))
                for begin in (0, size // 2, max(0, size - SAMPLE)):
                    file.seek(begin)
                    digest.update(file.read(SAMPLE))
    return digest.hexdigest()
