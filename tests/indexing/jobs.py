"""Indexing jobs in processes of their own, which tests kill, and what they leave behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qwen3_embedding_integrations import (
    Encoder,
    EncoderConfig,
    IndexingError,
    index_documents,
    shared_encoder,
)
from qwen3_embedding_integrations.chroma import ChromaStore  # noqa: F401  (for what is forked)
from qwen3_embedding_integrations.documents import Document
from qwen3_embedding_integrations.qdrant import QdrantStore  # noqa: F401
from qwen3_embedding_integrations.rows import Sink
from tests.stores import held_by, make_documents, open_sink

PATIENCE_S = 120  # for what never comes; nothing that works waits so long
# Forked from a process that has imported all of this and runs no thread: a start costs no import.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


class Narrow:
    """A sink that takes few rows at once, so that a small job has many windows."""

    def __init__(self, sink: Any, max_rows: int = 32) -> None:
        self._sink = sink
        self.max_rows = max_rows

    def __len__(self) -> int:
        return len(self._sink)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)


class Logged:
    """An encoder that appends each text to a file before it encodes it."""

    def __init__(self, encoder: Encoder, log: Path) -> None:
        self._encoder = encoder
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        os.write(self._log, "".join(f"{one}\n" for one in documents).encode())
        return self._encoder.encode_documents(documents)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


class Place(NamedTuple):
    """Where a job writes: the store, a folder for it, and a journal or none."""

    kind: str
    folder: Path
    journal: Path | None

    @property
    def log(self) -> Path:
        return self.folder.with_name("encoded.txt")

    @property
    def held(self) -> Path:
        return self.folder.with_name("held.json")

    @property
    def verdict(self) -> Path:
        return self.folder.with_name("verdict.json")

    def encoded(self) -> list[str]:
        """Return what the last job has encoded so far."""
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        return text.splitlines()

    def outcome(self) -> dict[str, Any]:
        """Return the last job's {"report": ...}, or {"error": ...}."""
        return json.loads(self.verdict.read_text(encoding="utf-8"))

    def held_texts(self) -> set[str]:
        """Return what stood in the store when the last job began."""
        return set(json.loads(self.held.read_text(encoding="utf-8")))


def notes(num: int) -> list[Document]:
    """Return a first version: sources of four pieces."""
    return make_documents(num)


def changed_notes(num: int) -> list[Document]:
    """Return a later version: other texts, sources of three pieces, the last tenth not there."""
    documents = make_documents(num * 9 // 10, word="changed")
    return [one for one in documents if one.position < 3]


def open_place(place: Place, encoder: Encoder) -> AbstractContextManager[Sink]:
    """Open the collection of a place, "memory" being Qdrant without a folder."""
    if place.kind == "memory":
        return open_sink("qdrant", ":memory:", encoder)
    return open_sink(place.kind, place.folder, encoder)


def run_job(
    place: Place,
    make: Callable[[int], Iterable[Document]],
    num: int,
    max_rows: int = 32,
    max_bytes: int | None = None,
) -> None:
    """Run a job over `make(num)` with prune; note before it what is held, after it the report."""
    tiny = shared_encoder(EncoderConfig(model="tiny", dtype="float32"))
    encoder: Any = Logged(tiny, place.log)
    with open_place(place, encoder) as sink:
        texts = [row.text for row, _ in sink.rows()]
        write_whole(place.held, texts)
        if max_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
        try:
            report = index_documents(
                make(num),
                encoder,
                Narrow(sink, max_rows),
                journal=place.journal,
                prune=True,
                retry_s=5,
            )
            write_whole(place.verdict, {"report": vars(report)})
        except IndexingError as error:
            write_whole(place.verdict, {"error": str(error)})


def save_rows(place: Place, path: Path) -> None:
    """Write ids, texts and vectors of a collection to a file."""
    tiny = shared_encoder(EncoderConfig(model="tiny", dtype="float32"))
    with open_place(place, tiny) as sink:
        held = held_by(sink)
    ids = sorted(held)
    np.savez(path, ids=ids, texts=[held[i][0] for i in ids], vectors=[held[i][2] for i in ids])


def write_whole(path: Path, value: object) -> None:
    """Write JSON that a reader finds whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.rename(path)


def start(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a function in a process of its own."""
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    return process


def run_to_end(
    function: Callable[..., object], *arguments: object, patience_s: float = PATIENCE_S
) -> None:
    """Run a function in a process of its own; fail if that fails."""
    process = start(function, *arguments)
    process.join(patience_s)
    assert process.exitcode == 0, f"{function.__name__} ended with {process.exitcode}"
    process.close()


def killed_after(process: BaseProcess, place: Place, num_texts: int, delay_s: float) -> bool:
    """Kill a job once it has encoded so many texts; whether it still ran."""
    deadline = time.monotonic() + PATIENCE_S
    while process.is_alive() and len(place.encoded()) < num_texts:
        assert time.monotonic() < deadline, f"{len(place.encoded())} of {num_texts} texts encoded"
        time.sleep(0.002)
    time.sleep(delay_s)
    process.kill()
    process.join()
    was_running = process.exitcode != 0
    process.close()
    return was_running


def kill_and_resume(
    place: Place,
    make: Callable[[int], Iterable[Document]],
    num: int,
    num_kills: int,
    seed: int,
    max_rows: int = 32,
) -> Iterator[tuple[set[str], list[str], bool]]:
    """Run a job, killed so often at random points; yield what each found, encoded; if killed."""
    rng = random.Random(seed)
    left = len([*make(num)])
    for kill in range(num_kills + 1):
        place.log.unlink(missing_ok=True)
        place.verdict.unlink(missing_ok=True)
        process = start(run_job, place, make, num, max_rows)
        if kill < num_kills:
            num_texts = rng.randrange(1, max(2, 2 * left // (num_kills - kill + 1)))
            was_running = killed_after(process, place, num_texts, rng.random() / 20)
            left -= num_texts
        else:
            process.join(PATIENCE_S)
            assert process.exitcode == 0, f"the last run ended with {process.exitcode}"
            process.close()
            was_running = False
        yield place.held_texts(), place.encoded(), was_running
        if place.journal is not None and place.journal.exists():
            with sqlite3.connect(place.journal) as database:
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            database.close()
