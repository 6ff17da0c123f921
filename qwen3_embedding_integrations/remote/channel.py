"""Calls under way: their requests on threads, so many at a time, tied into one future each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial

from ..core.workers import Workers
from ..errors import EngineClosedError
from .answers import Answer, Vectors
from .client import ServerClient


class Call:
    """A call: `ask` sends the texts of one part, `finish` makes the vectors of all answers.

    Its future fails with the first request that does. What was not sent when it is cancelled,
    failed or closed is not sent any more.
    """

    def __init__(
        self,
        parts: Sequence[range],
        ask: Callable[[range], list[Answer]],
        finish: Callable[[list[Answer]], Vectors],
        future: Future[Vectors] | None = None,
    ) -> None:
        self.future = future or Future[Vectors]()
        self.parts = parts
        self.num_done = 0  # texts
        self._ask = ask
        self._finish = finish
        self._answers: dict[range, list[Answer]] = {}
        self._lock = threading.Lock()

    def send(self, part: range) -> None:
        """Ask for one part; the last one finishes the call."""
        if self.future.done():
            return
        try:
            answers = self._ask(part)
            with self._lock:
                self._answers[part] = answers
                self.num_done += len(part)
                is_last = len(self._answers) == len(self.parts)
            if is_last:
                vectors = self._finish([one for part in self.parts for one in self._answers[part]])
                with suppress(InvalidStateError):  # cancelled, or closed meanwhile
                    self.future.set_result(vectors)
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the call with an error, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Channel:
    """One process's way to a server; a fork must open another."""

    def __init__(self, client: ServerClient, max_requests: int) -> None:
        self.client = client
        self.is_closed = False
        self._process = os.getpid()
        # A search is one request, an import many: each kind has threads of its own.
        self._short = Workers(max_requests, "qwen3-remote")
        self._long = Workers(max_requests, "qwen3-remote-bulk")
        self._lock = threading.Lock()
        self._under_way: set[Call] = set()

    @property
    def is_of_parent(self) -> bool:
        """Whether its threads stayed in the process that this one was forked from."""
        return os.getpid() != self._process

    def submit(self, call: Call) -> Call:
        """Send a call's requests as threads are free. Raises EngineClosedError."""
        with self._lock:
            if self.is_closed:
                raise EngineClosedError("the encoder is closed; make another RemoteEncoder")
            self._under_way.add(call)
        call.future.add_done_callback(lambda _: self._under_way.discard(call))
        workers = self._short if len(call.parts) == 1 else self._long
        for part in call.parts:
            workers.submit(partial(call.send, part))
        return call

    def close(self) -> None:
        """Fail what is under way with EngineClosedError, and close the connections."""
        with self._lock:
            self.is_closed = True
            under_way = list(self._under_way)
        for call in under_way:
            call.fail(EngineClosedError("the encoder was closed before it could answer"))
        self.client.close()
