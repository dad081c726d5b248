"""`python -m tests.install.publish ROOT`: the demo under the names of Z-Image Turbo's files, for a hub of our own.

ROOT becomes what `tests.install.hub` serves, and ROOT/checksums.json what CANDELA_TEST_CHECKSUMS takes: the files of
that name that everybody else has are 20 GB, and their checksums would refuse these.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from candela.checkpoints.catalogue import DEMO_FOLDER
from candela.checkpoints.published import CHECKSUMS, PUBLICATIONS
from tests import layouts
from tests.install.blobs import read_blob


def publish_turbo(root: Path, folder: Path = DEMO_FOLDER, precisions: tuple[str, ...] = ("bf16",)) -> Path:
    """-> checksums.json"""
    publication = PUBLICATIONS["z-image-turbo"]
    checksums = []
    for precision in precisions:
        written = root / "written" / precision
        layouts.export(folder, written, "z-image", precision)
        sources = {"transformer": f"z_image_turbo_{precision}", "text_encoder": "text_encoder", "vae": "ae"}
        for file in publication.split[precision]:
            target = root / file.repository / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(written / f"{sources[file.component]}.safetensors", target)
            if (file.repository, file.path) in CHECKSUMS:
                checksums.append([file.repository, file.path, "sha256", read_blob(target).sha256])
    shutil.rmtree(root / "written")
    shutil.copytree(folder / "tokenizer", root / publication.tokenizer / "tokenizer")
    path = root / "checksums.json"
    path.write_text(json.dumps(checksums))
    return path


if __name__ == "__main__":
    print(publish_turbo(Path(sys.argv[1]), precisions=("bf16", "int8", "nvfp4")))
