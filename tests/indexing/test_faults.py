"""What an indexing job leaves and mends: killed at any point, out of disk, told to end."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen3_embedding_integrations.cli import app
from tests.commands import command
from tests.indexing.jobs import (
    PATIENCE_S,
    Place,
    changed_notes,
    kill_and_resume,
    notes,
    run_job,
    run_to_end,
    save_rows,
)
from tests.stores import folder_in_memory, make_documents

NUM = 600


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as one:
        yield one


@pytest.fixture(scope="module", params=["chroma", "qdrant"])
def undisturbed(request: pytest.FixtureRequest) -> tuple[str, dict[str, np.ndarray]]:
    """Return a store and what two jobs that nobody disturbs leave in it."""
    with folder_in_memory() as one:
        place = Place(request.param, one / "store", None)
        run_to_end(run_job, place, notes, NUM)
        run_to_end(run_job, place, changed_notes, NUM)
        run_to_end(save_rows, place, one / "rows.npz")
        return request.param, dict(np.load(one / "rows.npz"))


@pytest.mark.parametrize("has_journal", [False, True], ids=["store alone", "journal"])
def test_killed_at_random_points(
    undisturbed: tuple[str, dict[str, np.ndarray]], folder: Path, has_journal: bool
) -> None:
    """Killed and resumed, a job leaves the undisturbed rows and encodes no committed one again."""
    kind, expected = undisturbed
    place = Place(kind, folder / "store", folder / "journal" if has_journal else None)
    num_killed = 0
    for make, num_kills in ((notes, 3), (changed_notes, 2)):
        for held, encoded, was_killed in kill_and_resume(
            place, make, NUM, num_kills, seed=num_killed
        ):
            again = held.intersection(encoded)
            assert not again, f"{len(again)} committed rows were encoded again: {[*again][:3]}"
            assert len(set(encoded)) == len(encoded)
            num_killed += was_killed
    assert num_killed >= 3, f"only {num_killed} runs were killed before their end"
    run_to_end(save_rows, place, folder / "rows.npz")
    assert_same(dict(np.load(folder / "rows.npz")), expected)


def assert_same(rows: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Check that a store holds the ids, texts and vectors of another."""
    assert rows["ids"].tolist() == expected["ids"].tolist()
    assert rows["texts"].tolist() == expected["texts"].tolist()
    difference = np.abs(rows["vectors"] - expected["vectors"]).max()
    assert difference < 1e-5, f"vectors differ by {difference}"


def test_a_full_disk(undisturbed: tuple[str, dict[str, np.ndarray]], folder: Path) -> None:
    """The store's disk is full: the error says so, and with room again the next run completes."""
    kind, expected = undisturbed
    place = Place(kind, folder / "store", folder / "journal")
    run_to_end(run_job, place, notes, NUM, 32, 400_000)  # the largest size of a file
    error = place.outcome()["error"]
    assert "collection 'notes' failed (write: " in error
    assert "disk" in error  # "disk I/O error", as SQLite calls a file that may not grow
    assert "mend it and run again" in error
    first = place.encoded()
    place.log.unlink()
    run_to_end(run_job, place, notes, NUM)
    report = place.outcome()["report"]
    assert (report["added"] + report["unchanged"], report["failed"]) == (NUM, 0)
    assert 0 < report["unchanged"] < len(first)
    assert place.held_texts().isdisjoint(place.encoded())
    run_to_end(run_job, place, changed_notes, NUM)
    run_to_end(save_rows, place, folder / "rows.npz")
    assert_same(dict(np.load(folder / "rows.npz")), expected)


def test_a_full_disk_under_the_journal(folder: Path) -> None:
    """The journal's disk is full: the error says so, and the next run completes."""
    place = Place("memory", folder / "store", folder / "journal")
    run_to_end(run_job, place, notes, NUM, 32, 70_000)
    assert f"the journal {place.journal} failed: " in place.outcome()["error"]
    assert "run again" in place.outcome()["error"]
    run_to_end(run_job, place, notes, NUM)
    assert place.outcome()["report"]["added"] == NUM


def is_past(database: Path, num_rows: int) -> bool:
    """Whether a Chroma folder holds more rows."""
    if not database.exists():
        return False
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as chroma:
        try:
            return chroma.execute("SELECT count(*) FROM embeddings").fetchone()[0] > num_rows
        except sqlite3.OperationalError:  # its tables are being made
            return False


def test_sigterm(folder: Path) -> None:
    """Told to end, the command says so with the shell's code; the next run completes the work."""
    rows = folder / "rows.jsonl"
    lines = [json.dumps({"text": one.text}) for one in make_documents(4000)]
    rows.write_text("\n".join(lines), encoding="utf-8")
    place = ("--location", folder / "index", "--model", "tiny", "--dtype", "float32")
    with command("index", rows, *place) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not is_past(folder / "index" / "chroma.sqlite3", 0):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (143, "")
    assert err.splitlines()[-1] == "stopped by SIGTERM; run again to go on"
    again = CliRunner().invoke(app, ["index", str(rows), *map(str, place), "--json"])
    assert again.exit_code == 0, again.output
    report = json.loads(again.stdout)
    assert (report["added"] + report["unchanged"], report["rows"]) == (4000, 4000)
    assert 0 < report["unchanged"] < 4000


def test_sigterm_while_watching(folder: Path) -> None:
    """A command that watches ends likewise, and its reports have come out."""
    (folder / "files").mkdir()
    (folder / "files" / "a.md").write_text("# Password\n\nReset it by mail.\n")
    place = ("--location", folder / "index", "--model", "tiny", "--watch", "--json")
    with command("index", folder / "files", *place) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith("watching"))
        assert "stop with Ctrl-C" in said
        time.sleep(2)  # until it waits for changes: whatever it does, the end is the same
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143
    assert err.splitlines()[-1] == "stopped by SIGTERM; run again to go on"
    assert json.loads(out)["added"] == 1
