"""The journal of an indexing job: which rows are committed, and what this run has seen."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..core.streaming import divide
from ..documents import Document, Gone, Item, Known, Stamp, Unreadable
from ..errors import IndexingError
from ..rows import Row, RowId

APPLICATION_ID = 0x51334A31  # "Q3J1": a file that bears another is not ours to write to
PAGE = 1000  # ids of one question; SQLite takes 32,766

TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS rows (id PRIMARY KEY, hash TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (source TEXT PRIMARY KEY, stamp TEXT, num_pieces INT);
CREATE TEMP TABLE seen (id PRIMARY KEY, hash TEXT) WITHOUT ROWID;
CREATE TEMP TABLE sources (
    source TEXT PRIMARY KEY, num_pieces INT, is_whole INT, stamp TEXT, has_failed INT DEFAULT 0
);
"""


class Journal:
    """A SQLite file beside a collection; without a path, a temporary one that goes with the job.

    What a run has seen stands in temporary tables on disk, so that memory does not grow with the
    number of documents. A row is entered after it was written: a job that dies in between finds
    the row in the store. Belongs to one collection (`bind`) and one process at a time. Raises
    IndexingError for a file that is damaged, in use, or not a journal.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = path
        try:
            # Autocommit: every transaction is one statement, or stands between BEGIN and COMMIT.
            self._db = sqlite3.connect(path or "", timeout=1.0, isolation_level=None)
            self._open()
        except sqlite3.Error as error:
            busy = "locked" in str(error)
            remedy = "wait for the other job" if busy else "delete it: the store knows its rows"
            raise IndexingError(f"the journal {path} cannot be used ({error}); {remedy}") from error

    def _open(self) -> None:
        found = self._db.execute("PRAGMA application_id").fetchone()[0]
        num_tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if num_tables and found != APPLICATION_ID:
            self._db.close()
            raise IndexingError(f"{self._path} is a database, but no journal; give another path")
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        # After a power cut the last entries may be missing, then the store is asked.
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA temp_store=FILE")
        self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        self._db.executescript(TABLES)

    def bind(self, identity: str, fingerprint: str, num_rows: int) -> None:
        """Forget what is entered of another collection or contract, or if the store lost rows."""
        entered = dict(self._db.execute("SELECT name, value FROM facts"))
        facts = {"collection": identity, "contract": fingerprint}
        is_same = all(entered.get(name) == value for name, value in facts.items())
        num_known = self._db.execute("SELECT count(*) FROM rows").fetchone()[0]
        if is_same and num_rows >= max(num_known, int(entered.get("num_rows", 0))):
            return
        self._db.execute("BEGIN")
        for table in ("facts", "rows", "files"):
            self._db.execute(f"DELETE FROM {table}")
        self._db.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
        self._db.execute("COMMIT")

    def hashes(self, ids: Sequence[RowId]) -> dict[RowId, str]:
        """Return the content hash of those of these rows that are entered."""
        return self._look_up("rows", ids)

    def enter(self, rows: Iterable[tuple[RowId, str]]) -> None:
        """Enter rows that are committed, with their content hashes."""
        self._write("REPLACE INTO rows VALUES (?, ?)", rows)

    def strike(self, ids: Iterable[RowId]) -> None:
        """Take out rows that were deleted."""
        self._write("DELETE FROM rows WHERE id = ?", ((one,) for one in ids))

    def see(self, rows: Sequence[Row]) -> dict[RowId, str]:
        """Mark rows as seen in this run; return the hashes of those that already were."""
        before = self._look_up("seen", [row.id for row in rows])
        new = ((row.id, row.content_hash) for row in rows)
        self._write("INSERT OR IGNORE INTO seen VALUES (?, ?)", new)
        return before

    def see_sources(self, items: Sequence[Item]) -> None:
        """Note which sources came, how many pieces each has so far, and what was said of it."""
        read = {item.source for item in items if isinstance(item, Document | Gone)}
        self.forget_files(read)  # until the run has come to its end
        rows: list[tuple[str, int, bool, str | None]] = []
        for item in items:
            match item:
                case Document():
                    rows.append((item.source, item.position + 1, True, None))
                case Stamp():
                    rows.append((item.source, 0, True, item.stamp))
                case Gone():
                    rows.append((item.source, 0, True, None))
                case Known() | Unreadable():  # nothing is known of what may lie beyond
                    rows.append((item.source, 0, False, None))
        self._write(
            "INSERT INTO sources (source, num_pieces, is_whole, stamp) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (source) DO UPDATE SET "
            "num_pieces = max(num_pieces, excluded.num_pieces), "
            "is_whole = min(is_whole, excluded.is_whole), "
            "stamp = coalesce(excluded.stamp, stamp)",
            rows,
        )

    def see_failure(self, source: str) -> None:
        """Note that one of a source's documents is not in the collection as it is now."""
        self._db.execute("UPDATE sources SET has_failed = 1 WHERE source = ?", (source,))

    def whole_sources(self) -> Iterator[tuple[str, int]]:
        """Yield each source that was read whole, and how many pieces it has."""
        yield from self._db.execute("SELECT source, num_pieces FROM sources WHERE is_whole")

    def has_seen(self, sources: Sequence[str]) -> set[str]:
        """Return those of these sources that this run has seen."""
        marks = ",".join("?" * len(sources))
        found = self._db.execute(f"SELECT source FROM sources WHERE source IN ({marks})", sources)
        return {source for (source,) in found}

    def file(self, source: str) -> tuple[str, int] | None:
        """Return stamp and number of pieces of a file whose rows are all committed."""
        found = self._db.execute("SELECT stamp, num_pieces FROM files WHERE source = ?", (source,))
        return found.fetchone()

    def forget_files(self, sources: Iterable[str]) -> None:
        """Take files out before their rows change."""
        self._write("DELETE FROM files WHERE source = ?", ((source,) for source in sources))

    def finish(self, num_rows: int) -> None:
        """Note how many rows the collection has, and the files that were read whole."""
        self._db.execute("REPLACE INTO facts VALUES ('num_rows', ?)", (num_rows,))
        self._db.execute(
            "REPLACE INTO files SELECT source, stamp, num_pieces FROM sources WHERE is_whole "
            "AND NOT has_failed AND stamp IS NOT NULL"
        )

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if isinstance(error, sqlite3.Error):  # its disk is full, or gone
            raise IndexingError(
                f"the journal {self._path or '(temporary)'} failed: {error}; what was written "
                "is in the store: run again"
            ) from error

    def _look_up(self, table: str, ids: Sequence[RowId]) -> dict[RowId, str]:
        found: dict[RowId, str] = {}
        for page in divide(ids, PAGE):
            marks = ",".join("?" * len(page))
            found |= dict(
                self._db.execute(f"SELECT id, hash FROM {table} WHERE id IN ({marks})", page)
            )
        return found

    def _write(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._db.execute("BEGIN")
        try:
            self._db.executemany(statement, rows)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
