"""Database: one SQLite file for any number of threads and processes, also after a fork."""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext

from .errors import StoreError

MEMORY = ":memory:"


class Database:
    """Connections to the file `path`, or to one in memory; none is in two threads at a time.

    `statements` begin each connection. What another process locks is waited for, `timeout_s` at
    most. Raises sqlite3.Error. Opened on first use; after `close` the next use opens it again.
    """

    def __init__(self, path: str, statements: Sequence[str], *, timeout_s: float) -> None:
        self._path = path
        self._statements = statements
        self._timeout_s = timeout_s
        self._is_closed = False
        self._process = os.getpid()
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._write_lock = threading.Lock()
        self._of_parent: list[object] = []
        if path == MEMORY:  # all that a database in memory has is one connection, handed round
            self._idle.put(self._connect())

    @contextmanager
    def connection(self, *, is_writer: bool = False) -> Generator[sqlite3.Connection]:
        """Lend a connection; to one writer at a time."""
        if os.getpid() != self._process:
            self._forget_parent()
        self._is_closed = False
        with self._write_lock if is_writer else nullcontext():
            connection = self._take()
            try:
                yield connection
            finally:
                self._idle.put(connection)
                if self._is_closed:
                    self.close()

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """Lend a connection for a write that is there in whole afterwards, or not at all."""
        with self.connection(is_writer=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close every connection; one that is in use, when it is given back."""
        self._is_closed = True
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def __del__(self) -> None:
        # Not by the garbage collector: from 3.13 on sqlite3 warns of that.
        if getattr(self, "_process", None) == os.getpid():
            self.close()

    def _take(self) -> sqlite3.Connection:
        try:
            return self._idle.get(block=self._path == MEMORY)
        except queue.Empty:
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            deadline = time.monotonic() + self._timeout_s
            for statement in self._statements:
                while not _is_done(connection, statement, deadline):
                    time.sleep(0.01)
        except BaseException:
            connection.close()
            raise
        return connection

    def _forget_parent(self) -> None:
        if self._path == MEMORY:
            raise StoreError("a database in memory does not cross a fork; give a path")
        # SQLite's connections must not be used across a fork, nor closed: kept, and not touched.
        self._of_parent += [self._idle, self._write_lock]
        self._idle, self._write_lock = queue.LifoQueue(), threading.Lock()
        self._process = os.getpid()


def _is_done(connection: sqlite3.Connection, statement: str, deadline: float) -> bool:
    """Whether a statement was executed; False where another process's lock was in its way."""
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as error:
        # The change to WAL does not wait for other processes by itself.
        if "locked" not in str(error) or time.monotonic() > deadline:
            raise
        return False
    return True
