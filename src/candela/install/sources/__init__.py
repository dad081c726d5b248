"""Where files come from: the hub or a mirror of it, a folder, or a plain URL prefix. All of them can list what a model
consists of and open a file at a byte."""

from __future__ import annotations

import os
import re
from pathlib import Path

from candela.errors import SourceError
from candela.install.sources.folder import Folder
from candela.install.sources.hub import Hub
from candela.install.sources.prefix import Prefix
from candela.install.sources.source import MODEL_INDEX, Absent, Readable, Remote, Source, components_of

__all__ = [
    "MODEL_INDEX",
    "Absent",
    "Folder",
    "Hub",
    "Prefix",
    "Readable",
    "Remote",
    "Source",
    "components_of",
    "open_source",
]


def open_source(name: str = "hub") -> Source:
    """`hub` (HF_ENDPOINT and HF_TOKEN honoured), a URL prefix, or a folder.

    Raises:
        SourceError: neither of these.
    """
    if name == "hub":
        from huggingface_hub import get_token

        return Hub((os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"), get_token())
    if re.match(r"https?://", name):
        return Prefix(name.rstrip("/"))
    folder = Path(name).expanduser().absolute()
    if not folder.is_dir():
        raise SourceError(
            f"the source {name} is neither a folder here nor a URL: give --from FOLDER or --from https://..."
        )
    return Folder(folder)
