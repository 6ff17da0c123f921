"""The connections and threads through which an encoder asks its server: so many at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import TypeVar

from ..core.workers import Workers
from ..errors import EngineClosedError
from .client import ServerClient

T = TypeVar("T")
R = TypeVar("R")


class Channel:
    """One process's way to a server; a fork must open another."""

    def __init__(self, client: ServerClient, max_requests: int) -> None:
        self.client = client
        self._pid = os.getpid()
        # A search is one request, an import many: each kind has threads of its own.
        self._short = Workers(max_requests, "qwen3-remote")
        self._long = Workers(max_requests, "qwen3-remote-bulk")
        self._lock = threading.Lock()
        self._under_way: set[Future[object]] = set()
        self.is_closed = False

    @property
    def is_of_parent(self) -> bool:
        """Whether its threads stayed in the process that this one was forked from."""
        return os.getpid() != self._pid

    def submit(
        self, requests: Sequence[Callable[[], T]], finish: Callable[[list[T]], R]
    ) -> tuple[Future[R], list[Future[T]]]:
        """Return the future of finish(their answers), and those of the requests.

        The first failure is the whole's, and takes back what has not been sent; so does cancelling
        the whole.
        """
        workers = self._short if len(requests) == 1 else self._long
        whole = Future[R]()
        with self._lock:
            if self.is_closed:
                raise EngineClosedError("the encoder is closed; make another RemoteEncoder")
            self._under_way.add(whole)  # pyright: ignore[reportArgumentType]
        whole.add_done_callback(self._forget)
        futures = [workers.submit(request) for request in requests]
        num_missing = len(futures)
        lock = threading.Lock()

        def note(done: Future[T]) -> None:
            nonlocal num_missing
            with lock:
                num_missing -= 1
                is_last = num_missing == 0
            if whole.done() or done.cancelled():
                return
            if error := done.exception():
                _settle(whole, error=error)
            elif is_last:
                _finish(whole, finish, [future.result() for future in futures])

        whole.add_done_callback(lambda _: [future.cancel() for future in futures])
        for future in futures:
            future.add_done_callback(note)
        return whole, futures

    def _forget(self, whole: Future[R]) -> None:
        with self._lock:
            self._under_way.discard(whole)  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        """Fail what is under way with EngineClosedError, and close the connections."""
        with self._lock:
            self.is_closed = True
            under_way = list(self._under_way)
        for whole in under_way:
            _settle(whole, error=EngineClosedError("the encoder was closed before it could answer"))
        self.client.close()


def _finish(whole: Future[R], finish: Callable[[list[T]], R], answers: list[T]) -> None:
    try:
        result = finish(answers)
    except BaseException as error:
        _settle(whole, error=error)
    else:
        _settle(whole, result=result)


def _settle(
    whole: Future[R], *, result: R | None = None, error: BaseException | None = None
) -> None:
    try:
        if error is not None:
            whole.set_exception(error)
        else:
            whole.set_result(result)  # pyright: ignore[reportArgumentType]
    except InvalidStateError:
        pass  # cancelled, closed or failed meanwhile
