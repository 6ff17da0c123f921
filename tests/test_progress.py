"""The bar of a long call: on a terminal only."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

SCRIPT = """
import sys
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
show = {"auto": None, "yes": True, "no": False}[sys.argv[1]]
with Qwen3Encoder(EncoderConfig(model="tiny", max_batch_tokens=64)) as encoder:
    print(encoder.encode_documents(["a text of a few words"] * 400, show_progress=show).shape)
"""


def run_on_a_terminal(show: str) -> str:
    """Return what the script writes to a terminal on stderr."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TERM": "xterm"}
    command = [sys.executable, "-c", SCRIPT, show]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait(timeout=120) == 0
    return written.decode(errors="replace")


def test_a_terminal_gets_a_bar_when_asked() -> None:
    """`show_progress=True` draws a bar that counts the texts."""
    written = run_on_a_terminal("yes")
    assert "encoding" in written
    assert "/400" in written, written[-500:]


def test_a_short_call_draws_nothing() -> None:
    """A call of less than three seconds leaves a terminal as it was."""
    assert run_on_a_terminal("auto") == ""


def test_nothing_is_written_elsewhere() -> None:
    """Without a terminal, and when switched off, nothing is written to stderr."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, "auto"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert run_on_a_terminal("no") == ""
