"""Where entries are kept: MemoryStore, DiskStore, RedisStore; the only module that knows redis."""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..core.config import check_range, check_type
from ..core.streaming import divide
from ..database import Database
from ..errors import ConfigError, needs

# What CPython keeps beside an entry's bytes: two bytes objects' heads, a key of 32 bytes, and its
# place in an OrderedDict (measured with tracemalloc, 3.11, and rounded up).
ENTRY_OVERHEAD_BYTES = 300

BEGIN = (
    # Of a new file: an entry of 1,024 float32 would fill half of two pages of the default 4,096.
    "PRAGMA page_size = 16384",
    "PRAGMA journal_mode = WAL",
    # What a power cut takes is encoded again; a killed process loses nothing.
    "PRAGMA synchronous = NORMAL",
    """CREATE TABLE IF NOT EXISTS entries (
        number INTEGER PRIMARY KEY,  -- in order of writing
        key BLOB NOT NULL UNIQUE,
        entry BLOB NOT NULL
    )""",
)
BUSY_TIMEOUT_S = 1.0  # another process writes for milliseconds

DAY_S = 24 * 60 * 60
MAX_AT_ONCE = 500  # entries of a question, a transaction or a command: 2 MB at the 0.6B's width


class Store(Protocol):
    """Where entries are kept: bytes under keys of 32 bytes.

    May raise anything, and lose or damage what it keeps: the cache takes that as a miss. Called
    from any thread.
    """

    @property
    def name(self) -> str: ...
    @property
    def stored_bytes(self) -> int | None: ...  # None: not known without asking a server
    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]: ...  # those that are there
    def put(self, entries: Mapping[bytes, bytes]) -> None: ...
    def close(self) -> None: ...


class MemoryStore:
    """Entries in this process's memory, `max_bytes` at most, its own overhead included.

    What was not used for longest goes first. Shared by every CachedEncoder it is given to.
    """

    name = "memory"

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        check_range("max_bytes", max_bytes, 1, 2**50)
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._stored_bytes = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes in use, never more than `max_bytes`."""
        return self._stored_bytes

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the entries that are here; they were used now."""
        with self._lock:
            found = {key: self._entries[key] for key in keys if key in self._entries}
            for key in found:
                self._entries.move_to_end(key)
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Keep the entries; one that is larger than all the room is not kept."""
        with self._lock:
            for key, entry in entries.items():
                self._forget(key)
                num_bytes = len(entry) + ENTRY_OVERHEAD_BYTES
                if num_bytes > self.max_bytes:
                    continue
                while self._stored_bytes + num_bytes > self.max_bytes:
                    self._forget(next(iter(self._entries)))
                self._entries[key] = entry
                self._stored_bytes += num_bytes

    def close(self) -> None:
        """Forget every entry."""
        with self._lock:
            self._entries.clear()
            self._stored_bytes = 0

    def _forget(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._stored_bytes -= len(entry) + ENTRY_OVERHEAD_BYTES

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.max_bytes,)  # another process starts with an empty one

    def __repr__(self) -> str:
        return f"MemoryStore(max_bytes={self.max_bytes})"


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
        self.name = f"disk {self.path}"
        self.max_bytes = max_bytes
        self._database = Database(str(self.path), BEGIN, timeout_s=BUSY_TIMEOUT_S)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file's used pages."""
        with self._open().connection() as connection:
            return _used_bytes(connection)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the entries that are here."""
        found: dict[bytes, bytes] = {}
        with self._open().connection() as connection:
            for some in divide(keys, MAX_AT_ONCE):
                marks = ",".join("?" * len(some))
                question = f"SELECT key, entry FROM entries WHERE key IN ({marks})"
                found.update(connection.execute(question, some).fetchall())
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Write the entries, then delete the oldest ones until the file's used pages fit."""
        database = self._open()
        for some in divide(entries.items(), MAX_AT_ONCE):
            with database.transaction() as connection:
                # Not an update: an entry written again is the newest.
                connection.executemany(
                    "INSERT OR REPLACE INTO entries (key, entry) VALUES (?, ?)", some
                )
                _trim(connection, self.max_bytes)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _open(self) -> Database:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self._database

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.max_bytes)

    def __repr__(self) -> str:
        return f"DiskStore({str(self.path)!r}, max_bytes={self.max_bytes})"


class RedisStore:
    """Entries on the Redis server at `url`, each for `ttl_s` seconds after it was written.

    `url` is redis-py's: "redis://[[user]:[password]]@host:port/database", "rediss://" with TLS,
    "unix://". Connects when first used; `timeout_s` is how long connecting, or one answer, may
    take before the server counts as down. Keys begin with `prefix`. Needs the extra "redis".
    """

    name = "redis"  # not the address: it may hold a password
    stored_bytes = None  # the server holds others' keys as well, and counts them all

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        ttl_s: int = 30 * DAY_S,
        timeout_s: float = 0.25,
        prefix: str = "qwen3-embedding:",
    ) -> None:
        with needs("redis", extra="redis"):
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        check_type("url", url, str)
        check_range("ttl_s", ttl_s, 1, 100 * 365 * DAY_S)
        check_type("prefix", prefix, str)
        if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= 60:
            raise ConfigError(f"timeout_s is {timeout_s!r}; choose seconds above 0, up to 60")
        self._url = url
        self._options = {"ttl_s": ttl_s, "timeout_s": timeout_s, "prefix": prefix}
        self._ttl_s = ttl_s
        self._prefix = prefix.encode()
        try:
            self._client = Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                # Said, not left to redis-py's defaults, which have changed: retries (ten in 8.1, of
                # a client made without a URL) would hold a text up longer than encoding it.
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # nothing of the third is used; it costs a command per connection
            )
        except ValueError as error:
            raise ConfigError(
                "url is no Redis URL; give redis://host:port/0, rediss:// or unix://"
            ) from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the entries that are there."""
        found: dict[bytes, bytes] = {}
        for some in divide(keys, MAX_AT_ONCE):
            answers: Any = self._client.mget([self._prefix + key for key in some])
            found.update((k, e) for k, e in zip(some, answers, strict=True) if e is not None)
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Write the entries; each is forgotten by the server `ttl_s` seconds from now."""
        for some in divide(entries.items(), MAX_AT_ONCE):
            with self._client.pipeline(transaction=False) as pipeline:
                for key, entry in some:
                    pipeline.set(self._prefix + key, entry, ex=self._ttl_s)
                pipeline.execute()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(RedisStore, **self._options), (self._url,)

    def __repr__(self) -> str:
        return f"RedisStore(ttl_s={self._ttl_s})"


def _used_bytes(connection: sqlite3.Connection) -> int:
    # Not the sum of the entries, which SQLite would have to read them for.
    (num_bytes,) = connection.execute(
        "SELECT (page_count - freelist_count) * page_size"
        " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    ).fetchone()
    return num_bytes


def _trim(connection: sqlite3.Connection, max_bytes: int) -> None:
    oldest = "SELECT number FROM entries ORDER BY number LIMIT 32"
    num_deleted = 1
    while num_deleted and _used_bytes(connection) > max_bytes:
        deletion = connection.execute(f"DELETE FROM entries WHERE number IN ({oldest})")
        num_deleted = deletion.rowcount
