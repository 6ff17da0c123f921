"""`qwen3-embedding` in a process of its own, while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def command(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Yield a running `qwen3-embedding` with these arguments; end it afterwards."""
    words = [sys.executable, "-m", "qwen3_embedding_integrations", *map(str, arguments)]
    environment = os.environ | {"PYTHONUTF8": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()
