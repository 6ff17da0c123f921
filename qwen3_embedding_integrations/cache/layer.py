"""One store of a cache: what it keeps, how often it answered, and left alone while it is down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from ..contract import Vectors
from .entry import Wanted, read_entry

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


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
        self._pause_s = 0.0
        self._until = 0.0
        self._is_trying = False

    def allows(self) -> bool:
        """Return whether to make a call now; the first one after a pause is alone in trying."""
        with self._lock:
            if not self._pause_s:
                return True
            if self._clock() < self._until:
                return False
            self._is_trying = True
            self._until = self._clock() + self._pause_s  # the others pause on meanwhile
            return True

    def note(self, *, is_success: bool) -> bool:
        """Note how a call ended; return whether this is news."""
        with self._lock:
            was_open = self._pause_s > 0
            if is_success:
                self._pause_s = 0.0
            elif self._is_trying or not was_open:  # else one of many that failed together
                self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
                self._until = self._clock() + self._pause_s
            self._is_trying = False
            return was_open == is_success


class Layer:
    """A store, asked through a breaker, its answers checked and counted."""

    def __init__(self, store: Store) -> None:
        self.store = store
        # Reading and writing apart: a full Redis refuses writes and answers reads.
        self._reading, self._writing = Breaker(), Breaker()
        self._lock = threading.Lock()
        self._hits = self._misses = self._damaged = self._errors = self._skipped = 0

    def find(
        self, keys: Sequence[bytes], wanted: Wanted, *, is_second_look: bool = False
    ) -> tuple[dict[bytes, Vectors], dict[bytes, bytes]]:
        """Return the vectors of the keys that are here, and their entries.

        A second look counts what it finds, and what it does not find is not missed twice.
        """
        entries = self._try(self._reading, lambda: self.store.get(keys)) or {}
        found: dict[bytes, Vectors] = {}
        damage: list[str] = []
        for key, entry in entries.items():
            try:
                vector = read_entry(key, entry, wanted)
            except ValueError as error:
                damage.append(str(error))
            else:
                if vector is not None:
                    found[key] = vector
        if damage and not is_second_look:
            message = "cache store %s: %d damaged entries are made anew, the first: %s"
            logger.warning(message, self.store.name, len(damage), damage[0])
        with self._lock:
            self._hits += len(found)
            self._misses += -len(found) if is_second_look else len(keys) - len(found)
            self._damaged += 0 if is_second_look else len(damage)
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
            counts = self._hits, self._misses, self._damaged, self._errors, self._skipped
        return StoreStats(self.store.name, *counts, stored_bytes)

    def _try(self, breaker: Breaker, call: Callable[[], T]) -> T | None:
        if not breaker.allows():
            with self._lock:
                self._skipped += 1
            return None
        try:
            answer = call()
        except Exception as error:
            with self._lock:
                self._errors += 1
            if breaker.note(is_success=False):
                # Its type alone: a message may hold an address with a password.
                kind = type(error).__name__
                logger.warning("cache store %s failed (%s): a miss", self.store.name, kind)
            return None
        if breaker.note(is_success=True):
            logger.info("cache store %s answers again", self.store.name)
        return answer
