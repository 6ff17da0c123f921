"""DiskStore: entries in one SQLite file that several processes share."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.config import check_range

TABLE = """CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY,  -- in order of writing
    key BLOB NOT NULL UNIQUE,
    entry BLOB NOT NULL
)"""
PAGE_BYTES = 16384  # an entry of 1,024 float32 would fill half of two pages of the default 4,096
BUSY_TIMEOUT_S = 1.0  # another process writes for milliseconds
MAX_KEYS = 500  # of one question to SQLite
MAX_ROWS = 1000  # of one transaction: what one outruns `max_bytes` by, until it is trimmed

_inherited: list[sqlite3.Connection] = []  # of a parent process: SQLite forbids even to close them


class DiskStore:
    """Entries in the SQLite file `path`, about `max_bytes` at most; what was written first goes.

    Any number of threads and processes of one machine may use the file at once; a process that is
    killed leaves it whole (a write-ahead log, so not on a network drive). Opened on first use, made
    with its folder if it is not there. A file that is damaged is a store that fails: misses, until
    you delete it.
    """

    def __init__(self, path: str | Path, max_bytes: int = 4 * 2**30) -> None:
        check_range("max_bytes", max_bytes, 2**20, 2**50)
        self.path = Path(path).expanduser().absolute()
        self.max_bytes = max_bytes
        self._connection: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The store and its file."""
        return f"disk {self.path}"

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file's used pages."""
        with self._connected() as connection:
            return _used_bytes(connection)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the entries that are here."""
        found: dict[bytes, bytes] = {}
        with self._connected() as connection:
            for start in range(0, len(keys), MAX_KEYS):
                some = keys[start : start + MAX_KEYS]
                marks = ",".join("?" * len(some))
                rows = connection.execute(
                    f"SELECT key, entry FROM entries WHERE key IN ({marks})", some
                )
                found.update(rows.fetchall())
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Write the entries, then delete the oldest ones until the file's used pages fit."""
        rows = iter(entries.items())
        with self._connected() as connection:
            while some := list(islice(rows, MAX_ROWS)):
                connection.execute("BEGIN IMMEDIATE")
                with connection:
                    # Not an update: an entry written again is the newest.
                    connection.executemany(
                        "INSERT OR REPLACE INTO entries (key, entry) VALUES (?, ?)", some
                    )
                    _trim(connection, self.max_bytes)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
                self._connection = None

    def __del__(self) -> None:
        # Not by the garbage collector: from 3.13 on sqlite3 warns of that.
        if getattr(self, "_connection", None) is not None:
            self.close()

    @contextmanager
    def _connected(self) -> Generator[sqlite3.Connection]:
        if self._process != os.getpid():
            if self._connection is not None:
                _inherited.append(self._connection)
            self._connection, self._lock, self._process = None, threading.Lock(), os.getpid()
        with self._lock:
            if self._connection is None:
                self._connection = _connect(self.path)
            yield self._connection

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.max_bytes)

    def __repr__(self) -> str:
        return f"DiskStore({str(self.path)!r}, max_bytes={self.max_bytes})"


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file
        connection.execute("PRAGMA journal_mode = WAL")
        # What a power cut takes is encoded again; a killed process loses nothing.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(TABLE)
    except BaseException:
        connection.close()
        raise
    return connection


def _used_bytes(connection: sqlite3.Connection) -> int:
    # Not the sum of the entries, which SQLite would have to read them for.
    pages, free, page_bytes = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * page_bytes


def _trim(connection: sqlite3.Connection, max_bytes: int) -> None:
    while (excess := _used_bytes(connection) - max_bytes) > 0:
        num_rows, first, last = connection.execute(
            "SELECT COUNT(*), MIN(number), MAX(number) FROM entries"
        ).fetchone()
        if not num_rows:
            return
        # The share of the rows that the excess is of the bytes, and one page's more.
        share = excess / _used_bytes(connection)
        last_to_go = first + int((last - first) * share) + 8
        connection.execute("DELETE FROM entries WHERE number <= ?", (last_to_go,))
