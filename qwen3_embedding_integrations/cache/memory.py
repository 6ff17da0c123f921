"""MemoryStore: entries in this process, the least recently used go first."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.config import check_range

# What CPython keeps beside an entry's bytes: two bytes objects' heads, a key of 32 bytes, and its
# place in an OrderedDict (measured with tracemalloc, 3.11, and rounded up).
ENTRY_OVERHEAD_BYTES = 300


class MemoryStore:
    """Entries in this process's memory, `max_bytes` at most, its own overhead included.

    What was not used for longest goes first. Shared by every CachedEncoder it is given to.
    """

    name = "memory"

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        check_range("max_bytes", max_bytes, 1, 2**50)
        self.max_bytes = max_bytes
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._stored_bytes = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes in use, never more than `max_bytes`."""
        return self._stored_bytes

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the entries that are here; they were used now."""
        with self._locked():
            found = {key: self._entries[key] for key in keys if key in self._entries}
            for key in found:
                self._entries.move_to_end(key)
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Keep the entries; one that is larger than all the room is not kept."""
        with self._locked():
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
        with self._locked():
            self._entries.clear()
            self._stored_bytes = 0

    def _forget(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._stored_bytes -= len(entry) + ENTRY_OVERHEAD_BYTES

    def _locked(self) -> threading.Lock:
        if self._process != os.getpid():  # a fork may have copied the lock locked
            self._reset()
        return self._lock

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.max_bytes,)  # another process starts with an empty one

    def __repr__(self) -> str:
        return f"MemoryStore(max_bytes={self.max_bytes})"
