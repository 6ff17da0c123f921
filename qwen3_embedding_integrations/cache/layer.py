"""One store of a cache: its answers checked and counted; left alone while it is down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from ..contract import Vectors
from .entry import Storage, read_entry
from .stores import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
COUNTED = ("hits", "misses", "damaged", "errors", "skipped")


class StoreStats(NamedTuple):
    """What one store has done; every text asked for is a hit or a miss, or was not asked for."""

    name: str
    hits: int
    misses: int
    damaged: int  # entries of the misses that did not pass their check
    errors: int  # calls of the store that failed
    skipped: int  # calls of the store not made, because it had just failed
    stored_bytes: int | None


class CacheStats(NamedTuple):
    """What a CachedEncoder has done since it was made."""

    texts: int
    hits: int  # texts whose vector was in a store
    joined: int  # texts whose vector another call was computing, or this one for an equal text
    encoded: int  # texts the encoder computed
    stores: tuple[StoreStats, ...]


class Breaker:
    """Open after a failure, for a pause that doubles up to half a minute; then one call tries."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pause_s = 0.0  # while it is open
        self._until = 0.0

    def allows(self) -> bool:
        """Return whether to make a call now; the first one after a pause is alone in trying."""
        with self._lock:
            if self._pause_s and self._clock() < self._until:
                return False
            if self._pause_s:  # the others pause on meanwhile, and longer if this one fails
                self._pause(min(2 * self._pause_s, LONGEST_PAUSE_S))
            return True

    def note(self, *, is_success: bool) -> bool:
        """Note how a call ended; return whether this is news."""
        with self._lock:
            was_open = self._pause_s > 0
            if is_success:
                self._pause_s = 0.0
            elif not was_open:  # else one of many that failed together
                self._pause(FIRST_PAUSE_S)
            return was_open == is_success

    def _pause(self, seconds: float) -> None:
        self._pause_s, self._until = seconds, self._clock() + seconds


class Layer:
    """A store, asked through a breaker, its answers checked and counted."""

    def __init__(self, store: Store) -> None:
        self.store = store
        # Reading and writing apart: a full Redis refuses writes and answers reads.
        self._reading, self._writing = Breaker(), Breaker()
        self._lock = threading.Lock()
        self._counts: dict[str, int] = dict.fromkeys(COUNTED, 0)

    def find(
        self, keys: Sequence[bytes], dimensions: int, storage: Storage, is_first_look: bool
    ) -> tuple[dict[bytes, Vectors], dict[bytes, bytes]]:
        """Return the vectors of the keys that are here, and their entries.

        A second look is not counted: every text is a hit or a miss once.
        """
        entries = self._try(self._reading, lambda: self.store.get(keys)) or {}
        found: dict[bytes, Vectors] = {}
        damage: list[str] = []
        for key, entry in entries.items():
            try:
                vector = read_entry(key, entry, dimensions, storage)
            except ValueError as error:
                damage.append(str(error))
            else:
                if vector is not None:
                    found[key] = vector
        if is_first_look:
            self._count(hits=len(found), misses=len(keys) - len(found), damaged=len(damage))
            if damage:
                message = "cache store %s: %d damaged entries are made anew, the first: %s"
                logger.warning(message, self.store.name, len(damage), damage[0])
        return found, {key: entries[key] for key in found}

    def keep(self, entries: Mapping[bytes, bytes]) -> None:
        """Put the entries into the store, if it can be done."""
        if entries:
            self._try(self._writing, lambda: self.store.put(entries))

    def stats(self) -> StoreStats:
        """Return the counts so far."""
        try:
            stored_bytes = self.store.stored_bytes
        except Exception:
            stored_bytes = None
        with self._lock:
            return StoreStats(self.store.name, **self._counts, stored_bytes=stored_bytes)

    def _count(self, **numbers: int) -> None:
        with self._lock:
            for name, number in numbers.items():
                self._counts[name] += number

    def _try(self, breaker: Breaker, call: Callable[[], T]) -> T | None:
        if not breaker.allows():
            self._count(skipped=1)
            return None
        try:
            answer = call()
        except Exception as error:
            self._count(errors=1)
            if breaker.note(is_success=False):
                # Its type alone: a message may hold an address with a password.
                kind = type(error).__name__
                logger.warning("cache store %s failed (%s): a miss", self.store.name, kind)
            return None
        if breaker.note(is_success=True):
            logger.info("cache store %s answers again", self.store.name)
        return answer
