"""Calls under way: how their steps are taken, and who waits for whom, thread or coroutine."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from ..contract import Vectors

T = TypeVar("T")
Rows = Mapping[bytes, Vectors]

# How long anyone else waits for a call that runs on an event loop: the waiter may be what blocks
# that loop (a host's sync method called in a coroutine), and then it would wait for itself.
LOOP_PATIENCE_S = 5.0


class Flight:
    """The keys that one call encodes; ends with their rows, or with none where the call failed."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.rows = Future[Rows]()
        # As if it ran: one waiter that leaves cannot cancel it for the others.
        self.rows.set_running_or_notify_cancel()
        self.loop = _running_loop()


class Way(NamedTuple):
    """How the steps of a call are taken: on the calling thread, or awaited."""

    encode_texts: Callable[[Sequence[str]], Any]  # vectors, or what is awaited for them
    is_async: bool = False
    loop_patience_s: float = LOOP_PATIENCE_S

    def finish(self, call: Coroutine[Any, Any, Vectors]) -> Vectors:
        """Return what a call returns whose steps are taken on this thread: none of them waits."""
        try:
            call.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("a call on a thread waited for an event loop")

    async def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, or raise what the encoder raises."""
        vectors = self.encode_texts(texts)
        return await vectors if self.is_async else vectors

    async def aside(self, function: Callable[[], T]) -> T:
        """Return what a function returns that asks stores, which may block."""
        return await asyncio.to_thread(function) if self.is_async else function()

    async def wait(self, flight: Flight) -> Rows:
        """Return a flight's rows; none if its call failed, or may never end while this waits."""
        is_own_loop = flight.loop is not None and flight.loop is _running_loop()
        patience_s = None if flight.loop is None else self.loop_patience_s
        try:
            if self.is_async:
                landed = asyncio.wrap_future(flight.rows)
                return await asyncio.wait_for(landed, None if is_own_loop else patience_s)
            return flight.rows.result(0 if is_own_loop else patience_s)
        except TimeoutError:
            return {}


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


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
