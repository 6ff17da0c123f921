"""What an indexing job leaves and mends: killed, out of disk, its host gone or failing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.indexing.jobs import (
    Place,
    changed_notes,
    kill_and_resume,
    notes,
    run_job,
    run_to_end,
    save_rows,
)

NUM = 600


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Yield a folder in memory where there is one: kill -9 asks nothing of the disk."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shm, ignore_cleanup_errors=True) as one:
        yield Path(one)


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
    for make in (notes, changed_notes):
        for held, encoded, was_killed in kill_and_resume(place, make, NUM, 3, seed=num_killed):
            again = held.intersection(encoded)
            assert not again, f"{len(again)} committed rows were encoded again: {[*again][:3]}"
            assert len(set(encoded)) == len(encoded)
            num_killed += was_killed
    assert num_killed >= 4, f"only {num_killed} runs were killed before their end"
    run_to_end(save_rows, place, folder / "rows.npz")
    rows = dict(np.load(folder / "rows.npz"))
    assert rows["ids"].tolist() == expected["ids"].tolist()
    assert rows["texts"].tolist() == expected["texts"].tolist()
    assert np.abs(rows["vectors"] - expected["vectors"]).max() < 1e-5
