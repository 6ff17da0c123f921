"""Texts being encoded: who asks for one of them meanwhile waits for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future

from ..contract import Vectors

Rows = Mapping[bytes, Vectors]


class Flight:
    """The keys that one call encodes; ends with their rows, or with none where the call failed."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.rows = Future[Rows]()


class Flights:
    """The texts being encoded by one CachedEncoder."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._by_key: dict[bytes, Flight] = {}

    def claim(self, keys: Iterable[bytes]) -> tuple[Flight, list[Flight]]:
        """Return a flight of the keys that nobody encodes, and the flights of the others.

        The first must be ended, whatever happens.
        """
        if self._process != os.getpid():  # the parent's flights never land in a fork
            self._reset()
        flight, others = Flight(), dict[Flight, None]()
        with self._lock:
            for key in keys:
                holder = self._by_key.setdefault(key, flight)
                if holder is flight:
                    flight.keys.append(key)
                else:
                    others[holder] = None
        return flight, list(others)

    def end(self, flight: Flight, rows: Rows) -> None:
        """Give the waiters the rows; where there are none, they encode for themselves."""
        with self._lock:
            for key in flight.keys:
                self._by_key.pop(key, None)
        flight.rows.set_result(rows)
