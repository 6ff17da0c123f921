"""index_documents: encode and write what is new or changed, delete what is gone, resume."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..contract import EmbeddingContract, Encoder
from ..core.config import check_range
from ..core.streaming import divide
from ..documents import Document, Gone, Item, Known, Unreadable
from ..rows import Row, RowId, Sink, document_id, row_of
from .journal import Journal
from .pipeline import Batch, Encode, Host, Pipeline

MAX_WINDOW_ROWS = 512
MAX_WINDOW_CHARS = 1_000_000
MAX_WAIT_S = 1.0  # a window that is not full is taken when a document comes later than this
MAX_FAILURES = 1000  # named in a report; all are counted
DELETE_ROWS = 1000
MAX_GAP = 3
PLACE = re.compile(r"^(documents\[\d+\]|text \d+)")


class Failure(NamedTuple):
    """A document or file that is not in the collection as it is now."""

    name: str
    reason: str


@dataclass
class IndexReport:
    """What became of the documents of a job, in rows; `failures` names the first thousand."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    repeated: int = 0  # the same source, position and text came before
    removed: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list[Failure])

    @property
    def written(self) -> int:
        """How many rows were encoded and written."""
        return self.added + self.changed

    def fail(self, name: str, reason: object) -> None:
        """Count a failure."""
        self.failed += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(Failure(name, str(reason)))


Progress = Callable[[IndexReport], object]


def index_documents(
    documents: Iterable[Item],
    encoder: Encoder,
    sink: Sink,
    *,
    journal: str | Path | None = None,
    prune: bool = False,
    retry_s: int = 300,
    on_progress: Progress | None = None,
) -> IndexReport:
    """Bring a collection up to date with the documents; return what was done.

    Rows that stand in the collection with the same content are neither encoded nor written; changed
    ones are replaced; what a source held beyond its present pieces is deleted, and with `prune` all
    rows of sources that did not come. A document that cannot be encoded is reported and holds up no
    other. While one window of documents is encoded, the one before is written; memory does not grow
    with their number, so the iterable may be endless.

    Killed at any moment, the next run goes on where this one was: the collection itself says what
    is committed. A `journal` (a path) keeps that on disk beside it, so that a repeated run need not
    ask. Passing faults of the host are retried for `retry_s` seconds. Raises ContractMismatchError
    if the collection was made otherwise, IndexingError if the host or the journal fails for good.
    """
    with Journal(journal) as record:
        job = Job(encoder.contract, sink, record, retry_s=retry_s, on_progress=on_progress)
        job.run(documents, encode_by(encoder))
        if prune:
            job.prune()
        job.finish()
    return job.report


class Job:
    """One run over one collection: plans what must be done, keeps the journal, counts."""

    def __init__(
        self,
        contract: EmbeddingContract,
        sink: Sink,
        record: Journal,
        *,
        retry_s: int,
        on_progress: Progress | None = None,
    ) -> None:
        check_range("retry_s", retry_s, 0, 1_000_000)
        self.report = IndexReport()
        self._sink = sink
        self._record = record
        self._host = Host(sink, retry_s)
        self._on_progress = on_progress
        if stored := self._host.ask("read the contract", lambda: sink.contract):
            contract.require_match(stored, index=sink.name)
        num_rows = self._count()
        self._is_empty = num_rows == 0
        identity = self._host.ask("read the identity", lambda: sink.identity)
        record.bind(identity, contract.fingerprint, num_rows)

    def run(self, items: Iterable[Item], encode: Encode) -> None:
        """Encode and write what is new or changed; delete what sources no longer hold."""
        windows = _windows(items, self._window_rows())
        self._run((self._plan(window) for window in windows), encode)
        self.remove_stale()

    def run_rows(self, rows: Iterable[Row], encode: Encode) -> None:
        """Encode and write rows that have their ids already."""
        pages = divide(rows, self._window_rows())
        self._run(map(self._due, pages), encode)

    def sources(self) -> Iterator[str]:
        """Yield the source of each row of the collection."""
        yield from (source for _, source in self._sink.sources())

    def prune(self, has_read: Callable[[str], bool] = lambda _: True) -> None:
        """Delete the rows of sources that this run should have seen, by `has_read`, and has not."""
        self.delete(self._host.ask("list the rows", partial(self._unseen, has_read)))

    def delete(self, ids: Iterable[RowId]) -> None:
        """Delete rows."""
        for page in divide(ids, DELETE_ROWS):
            self._record.strike(page)  # first: what dies in between must not be taken for there
            self._host.ask("delete", partial(self._sink.delete, page))
            self.report.removed += len(page)

    def finish(self) -> None:
        """Note in the journal that the run came to its end."""
        self._record.finish(self._count())

    def _run(self, batches: Iterable[Batch], encode: Encode) -> None:
        pipeline = Pipeline(
            self._host, encode, on_written=self._note_written, on_failed=self._note_failed
        )
        try:
            for batch in batches:
                pipeline.put(batch)
            pipeline.drain()
        finally:
            pipeline.stop()

    def _plan(self, window: list[Item]) -> Batch:
        """Note what the window says; return what of it must be encoded."""
        self._record.see_sources(window)
        for item in window:
            if isinstance(item, Unreadable):
                self.report.fail(item.source, item.reason)
            elif isinstance(item, Known):
                self.report.unchanged += item.num_pieces
        self.remove((item.source, 0) for item in window if isinstance(item, Gone))
        rows = [row_of(item) for item in window if isinstance(item, Document)]
        return self._due(self.first_ones(rows))

    def first_ones(self, rows: list[Row]) -> list[Row]:
        """Return the rows that this run has not seen."""
        seen = self._record.see(rows)
        fresh: list[Row] = []
        for row in rows:
            before = seen.get(row.id)
            if before is None:
                seen[row.id] = row.content_hash
                fresh.append(row)
            elif before == row.content_hash:
                self.report.repeated += 1
            else:
                reason = (
                    "another text came before under this source and position; number the pieces"
                )
                self._note_failed(row, reason)
        return fresh

    def _due(self, rows: list[Row]) -> Batch:
        """Return the rows that are new or changed."""
        known = self._stored_hashes([row.id for row in rows])
        due = [row for row in rows if known.get(row.id) != row.content_hash]
        self.report.unchanged += len(rows) - len(due)
        stored = {row.id for row in due if row.id in known}
        # Before they change: a job that dies at that has the store asked, not the journal believed.
        self._record.strike(stored)
        return Batch(due, stored)

    def _stored_hashes(self, ids: list[RowId]) -> dict[RowId, str]:
        if self._is_empty or not ids:
            return {}
        known = self._record.hashes(ids)
        if asked := [one for one in ids if one not in known]:
            found = self._host.ask("look up rows", lambda: self._sink.hashes(asked))
            self._record.enter(found.items())
            known |= found
        return known

    def _note_written(self, rows: list[Row], are_new: bool) -> None:
        self._record.enter((row.id, row.content_hash) for row in rows)
        if are_new:
            self.report.added += len(rows)
        else:
            self.report.changed += len(rows)
        if self._on_progress:
            self._on_progress(self.report)

    def _note_failed(self, row: Row, reason: object) -> None:
        # An encoder's error counts within its own call; the row's name says more.
        self.report.fail(row.name, PLACE.sub("it", str(reason)))
        if source := row.facts.get("source"):
            self._record.see_failure(source)

    def remove_stale(self) -> None:
        """Delete what the sources that the journal saw whole no longer hold."""
        if self._is_empty:
            return
        for page in divide(self._record.whole_sources(), MAX_WINDOW_ROWS // MAX_GAP):
            # Pieces are numbered without gaps, but for one that could not be encoded: where the
            # next few are missing, there are no more.
            next_ids: dict[RowId, tuple[str, int]] = {
                document_id(source, number + gap): (source, number)
                for source, number in page
                for gap in range(MAX_GAP)
            }
            self.remove(next_ids[row_id] for row_id in self._stored_hashes([*next_ids]))

    def remove(self, places: Iterable[tuple[str, int]]) -> None:
        """Delete what each source holds at a position and beyond."""
        beyond = [partial(self._sink.ids_beyond, *place) for place in dict.fromkeys(places)]
        self.delete([one for ask in beyond for one in self._host.ask("look up rows", ask)])

    def _unseen(self, has_read: Callable[[str], bool]) -> list[RowId]:
        unseen: list[RowId] = []
        for page in divide(self._sink.sources(), DELETE_ROWS):
            here = {source for _, source in page if has_read(source)}
            gone = here - self._record.has_seen([*here])
            unseen += [row_id for row_id, source in page if source in gone]
            self._record.forget_files(gone)
        return unseen

    def _window_rows(self) -> int:
        return min(MAX_WINDOW_ROWS, self._host.ask("read its limits", lambda: self._sink.max_rows))

    def _count(self) -> int:
        return self._host.ask("count the rows", lambda: len(self._sink))


def encode_by(encoder: Encoder) -> Encode:
    """Return what makes the vectors of rows with an encoder."""
    return lambda rows: encoder.encode_documents([row.text for row in rows])


def _windows(items: Iterable[Item], max_rows: int) -> Iterator[list[Item]]:
    """Yield lists of at most `max_rows` items and about a million characters."""
    window: list[Item] = []
    num_chars, opened = 0, 0.0
    for item in items:
        opened = opened if window else time.monotonic()
        window.append(item)
        num_chars += len(item.text) if isinstance(item, Document) else 0
        is_late = time.monotonic() - opened > MAX_WAIT_S
        if len(window) == max_rows or num_chars >= MAX_WINDOW_CHARS or is_late:
            yield window
            window, num_chars = [], 0
    if window:
        yield window
