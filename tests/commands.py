"""`qwen3-embedding` in a process of its own, while it runs, and in this one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qwen3_embedding_integrations.cli import main


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


def run_here(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `qwen3-embedding` in this process: seconds less, where it ends before it does much."""
    words = ["qwen3-embedding", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8"))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            main()
    return subprocess.CompletedProcess(
        words, int(ended.value.code or 0), out.getvalue(), err.getvalue()
    )
