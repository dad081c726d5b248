"""`python -m tests.install.shell install ...`: Candela, but for two constants.

CANDELA_TEST_CHECKSUMS names a JSON file of [repository, path, algorithm, digest], which replace the published
checksums: those are of files too large for tests. CANDELA_TEST_BACKOFF holds the seconds between tries, "0.1 0.1".
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from candela.checkpoints import published
from candela.cli.main import main
from candela.install import http

if __name__ == "__main__":
    if file := os.environ.get("CANDELA_TEST_CHECKSUMS"):
        published.CHECKSUMS.clear()
        for repository, path, algorithm, digest in json.loads(Path(file).read_text()):
            published.CHECKSUMS[repository, path] = (algorithm, digest)
    if pauses := os.environ.get("CANDELA_TEST_BACKOFF"):
        http.BACKOFF = tuple(map(float, pauses.split()))
    main()
