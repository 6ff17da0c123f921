"""Threads of our own, for work that is computed or written beside the caller's.

Not ThreadPoolExecutor's: those take no more work once the main thread has ended, though a script's
other threads may still be encoding.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Task = tuple[Future[Any], Callable[[], Any]]


class Workers:
    """A number of daemon threads that answer tasks in the order of submission.

    `prepare` has run on every thread when the constructor returns, and raises there what it raises.
    The threads end with this object.
    """

    def __init__(
        self, num_threads: int, name: str, *, prepare: Callable[[], object] = object
    ) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        weakref.finalize(self, _dismiss, self._tasks, num_threads).atexit = False
        prepared: list[Future[object]] = [Future() for _ in range(num_threads)]
        for ready in prepared:
            threading.Thread(
                target=_work, args=(self._tasks, ready, prepare), name=name, daemon=True
            ).start()
        for ready in prepared:
            ready.result()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Return the future of function(); a future cancelled in time is not computed."""
        future = Future[T]()
        self._tasks.put((future, function))
        return future


def on_fresh_thread(function: Callable[[], T]) -> T:
    """Return function(), computed on a thread that ends with it."""
    future = Future[T]()
    threading.Thread(target=_answer, args=(future, function), daemon=True).start()
    return future.result()


def _work(
    tasks: SimpleQueue[_Task | None], ready: Future[object], prepare: Callable[[], object]
) -> None:
    _answer(ready, prepare)
    del ready, prepare
    while (task := tasks.get()) is not None:
        _answer(*task)
        del task  # while it waits, a thread holds no tensors


def _answer(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


def _dismiss(tasks: SimpleQueue[_Task | None], num_threads: int) -> None:
    for _ in range(num_threads):
        tasks.put(None)
