"""Where files come from: the hub or a mirror of it, a folder, or a plain URL prefix. All of them can list what a model
consists of and open a file at a byte."""

from __future__ import annotations

import os
import re
from pathlib import Path

from candela.errors import SourceError
from candela.install.http import HUB, origin
from candela.install.sources.folder import Folder
from candela.install.sources.hub import Hub, hub_headers
from candela.install.sources.prefix import Prefix
from candela.install.sources.published import PublishedSizes
from candela.install.sources.source import MODEL_INDEX, Absent, Readable, Remote, Source, components_of

__all__ = [
    "MODEL_INDEX",
    "Absent",
    "Folder",
    "Hub",
    "Prefix",
    "PublishedSizes",
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
        return Hub(_address("HF_ENDPOINT", (os.environ.get("HF_ENDPOINT") or "").strip() or HUB), hub_headers())
    if re.match(r"https?://", name, re.IGNORECASE):
        return Prefix(_address("--from", name))
    folder = Path(os.path.expanduser(name)).absolute()
    try:
        if folder.is_dir():
            return Folder(folder)
        why = ""
    except OSError as error:  # a name too long, a folder that may not be looked into
        why = f" ({error.strerror or error})"
    raise SourceError(
        f"the source {_shown(name)} is neither a folder here nor a URL{why}: give --from FOLDER or --from https://..."
    )


def _address(what: str, url: str) -> str:
    if not re.match(r"https?://", url, re.IGNORECASE):
        raise SourceError(f"{what} is {_shown(url)}: write https:// in front")
    try:
        if not origin(url)[1]:
            raise ValueError("it names no host")
    except ValueError as error:
        raise SourceError(
            f"{what} is {_shown(url)}, which is no address. Write https://HOST or https://HOST/PATH"
        ) from error
    return url.rstrip("/")


def _shown(name: str) -> str:
    """What may be an address that is spelled wrongly, without a name and password that may be in it."""
    scheme, separator, rest = name.partition("://")
    shown = f"{scheme}://{rest.rpartition('@')[2]}" if separator else re.sub(r"^[^/@]*:[^/]*@", "", name)
    return shown if len(shown) <= 200 else f"{shown[:200]}... ({len(name)} characters)"
