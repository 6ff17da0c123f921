"""One file for several processes: shared, forked, killed while writing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_embedding_integrations import CachedEncoder, DiskStore
from qwen3_embedding_integrations.cache.entry import read_entry
from tests.cache.encoders import WIDTH, HashEncoder, true_vectors

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from qwen3_embedding_integrations.cache import DiskStore
from qwen3_embedding_integrations.cache.entry import write_entry
from tests.cache.encoders import true_vector

store, first = DiskStore(sys.argv[1]), int(sys.argv[2])
number = first
while True:
    entries = {}
    for i in range(number, number + 20):
        key = i.to_bytes(32, "big")
        entries[key] = write_entry(key, true_vector(str(i)), "float32")
    store.put(entries)
    number += 20
    print(number, flush=True)
"""


def test_a_writer_killed_at_any_time_leaves_a_whole_file(tmp_path: Path) -> None:
    """SIGKILL five times: what was written is there, whole, and the file passes SQLite's check."""
    path = tmp_path / "cache"
    written: list[range] = []
    for round_number in range(5):
        first = round_number * 1_000_000
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(first)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert writer.stdout is not None
        last = first
        for line in writer.stdout:
            last = int(line)
            if last >= first + 20 * (3 + 7 * round_number):
                writer.send_signal(signal.SIGKILL)
                break
        for line in writer.stdout:  # what it had said before the signal came
            last = int(line) if line.endswith("\n") else last
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        written.append(range(first, last))
    store = DiskStore(path)
    for numbers in written:
        keys = [number.to_bytes(32, "big") for number in numbers]
        found = store.get(keys)
        assert len(found) == len(keys)
        for number, key in zip(numbers, keys, strict=True):
            row = read_entry(key, found[key], WIDTH, "float32")
            assert row is not None
            assert (row == true_vectors([str(number)])[0]).all()
    store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


SHARER = """
import sys
from qwen3_embedding_integrations.cache import CachedEncoder, DiskStore
from tests.cache.encoders import HashEncoder, true_vectors

encoder = HashEncoder()
with CachedEncoder(encoder, DiskStore(sys.argv[1], 2**20)) as cached:
    for turn in range(150):
        start = turn * int(sys.argv[2]) % 400
        texts = [f"text {i % 400}" for i in range(start, start + 20)]
        assert (cached.encode_documents(texts) == true_vectors(texts)).all()
    store = cached.stats().stores[0]
print(encoder.counts.total(), store.errors, store.damaged)
"""


def test_processes_share_a_file(tmp_path: Path) -> None:
    """Three at once, reading and writing the same entries, all right; the next finds them there."""
    path = tmp_path / "cache"
    sharers = [
        subprocess.Popen(
            [sys.executable, "-c", SHARER, str(path), str(step)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for step in (20, 60, 140)
    ]
    reports = [sharer.communicate(timeout=120)[0].split() for sharer in sharers]
    assert [sharer.returncode for sharer in sharers] == [0, 0, 0]
    assert [int(damaged) for _, _, damaged in reports] == [0, 0, 0]
    encoder = HashEncoder()
    texts = [f"text {i}" for i in range(400)]
    with CachedEncoder(encoder, DiskStore(path)) as cached:
        assert (cached.encode_documents(texts) == true_vectors(texts)).all()
    if all(errors == "0" for _, errors, _ in reports):  # else a store was left alone for a second
        assert encoder.counts.total() == 0


FORKED = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on: a fork beside threads
from qwen3_embedding_integrations.cache import CachedEncoder, DiskStore, MemoryStore
from tests.cache.encoders import HashEncoder, true_vectors

encoder = HashEncoder()
cached = CachedEncoder(encoder, MemoryStore(), DiskStore(sys.argv[1]))
cached.encode_documents(["a"])
encoder.gate.clear()
held = threading.Thread(target=cached.encode_documents, args=(["held"],))
held.start()
encoder.entered.acquire()
encoder.entered.acquire()
child = os.fork()
if child == 0:
    encoder.gate.set()
    texts = ["a", "held", "new"]
    is_right = (cached.encode_documents(texts) == true_vectors(texts)).all()
    os._exit(0 if is_right and cached.stats().hits == 1 else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
encoder.gate.set()
held.join()
assert (cached.encode_documents(["new"]) == true_vectors(["new"])).all()
assert encoder.counts["new"] == 0, "the child's entry is not in the file"
sys.exit(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_goes_on_with_the_file(tmp_path: Path) -> None:
    """A child, forked while a text is encoded, waits for nobody and uses the file anew."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
