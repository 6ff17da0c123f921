"""Texts being encoded: who asks for one of them meanwhile waits for it, thread or coroutine."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Rows = Mapping[bytes, npt.NDArray[np.float32]]

# How long anyone else waits for a call that runs on an event loop: the waiter may be what blocks
# that loop (a host's sync method called in a coroutine), and then it would wait for itself.
LOOP_PATIENCE_S = 5.0


class Flight:
    """The keys that one call encodes; ends with their rows, or without where the call failed."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None, loop_patience_s: float) -> None:
        self.keys: list[bytes] = []
        self._loop = loop
        self._loop_patience_s = loop_patience_s
        self._future = Future[Rows | None]()
        # As if it ran: one waiter that leaves cannot cancel it for the others.
        self._future.set_running_or_notify_cancel()

    def end(self, rows: Rows | None) -> None:
        """Let the waiters go, once."""
        if not self._future.done():
            self._future.set_result(rows)

    def wait(self) -> Rows | None:
        """Return the rows; None if the call failed, or does not end while this thread waits."""
        here = _running_loop()
        if self._loop is not None and self._loop is here:
            patience_s = 0.0
        else:
            patience_s = None if self._loop is None else self._loop_patience_s
        try:
            return self._future.result(patience_s)
        except TimeoutError:
            return None

    async def await_(self) -> Rows | None:
        """Return what `wait` returns, without blocking the event loop."""
        is_safe = self._loop is None or self._loop is asyncio.get_running_loop()
        landed = asyncio.wrap_future(self._future)
        try:
            return await asyncio.wait_for(landed, None if is_safe else self._loop_patience_s)
        except TimeoutError:
            return None


class Claim(NamedTuple):
    """What a call has to encode itself, and for whom it waits."""

    flight: Flight
    others: list[Flight]


class Flights:
    """The texts being encoded by one CachedEncoder."""

    def __init__(self, *, loop_patience_s: float = LOOP_PATIENCE_S) -> None:
        self._loop_patience_s = loop_patience_s
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._by_key: dict[bytes, Flight] = {}

    def claim(self, keys: Iterable[bytes]) -> Claim:
        """Return a flight of the keys that nobody encodes, and the flights of the others.

        The flight must be ended by `land` or `fail`, whatever happens.
        """
        if self._process != os.getpid():  # the parent's flights never land in a fork
            self._reset()
        flight = Flight(_running_loop(), self._loop_patience_s)
        others: dict[Flight, None] = {}
        with self._lock:
            for key in keys:
                holder = self._by_key.setdefault(key, flight)
                if holder is flight:
                    flight.keys.append(key)
                else:
                    others[holder] = None
        return Claim(flight, list(others))

    def land(self, flight: Flight, rows: Rows) -> None:
        """End a flight with its rows."""
        self._end(flight, {key: rows[key] for key in flight.keys})

    def fail(self, flight: Flight) -> None:
        """End a flight without rows, if it has not landed: its waiters encode for themselves."""
        self._end(flight, None)

    def _end(self, flight: Flight, rows: Rows | None) -> None:
        with self._lock:
            for key in flight.keys:
                if self._by_key.get(key) is flight:
                    del self._by_key[key]
        flight.end(rows)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
