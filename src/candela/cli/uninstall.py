"""`candela uninstall`: takes away what `install` brought, and says what stays."""

from __future__ import annotations

from candela.checkpoints.manifest import read_manifest
from candela.cli.output import plain, say
from candela.errors import ModelNotFound
from candela.install.nodes import remove_nodes
from candela.install.removal import remove_model


def run(what: str) -> int:
    if what == "nodes":
        return _nodes()
    if what == "demo":
        raise ModelNotFound("the demo is a part of Candela. The nodes are removed with: candela uninstall nodes")
    gone, stays = remove_model(what, lambda: say("an installer is at work there: waiting for it"))
    for path in gone:
        print(plain(f"removed  {path}"))
    for reason in stays:
        print(plain(f"stays    {reason}"))
    return 0


def _nodes() -> int:
    packs = read_manifest().nodes
    if not packs:
        raise ModelNotFound(
            "no nodes were installed by `candela install`. A clone or copy in custom_nodes is removed by deleting its "
            "folder"
        )
    for pack in packs:
        left = remove_nodes(pack)
        print(plain(f"removed  {pack.folder}"))
        for path in left.edited:
            print(plain(f"stays    {path}: it was edited after it was installed"))
        for package, reason in left.needed.items():
            print(plain(f"stays    {package} in {pack.python}: {reason}"))
    return 0
