"""Threads that compute: a batch's texts shared out among several, or one that is used once.

Not ThreadPoolExecutor's: those take no more work once the main thread has ended, though a script's
other threads may still be encoding.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch

from .packing import PackedBatch

MAX_MEMBERS = 16  # more threads would wait for Python's lock; each takes several cores instead
MIN_TOKENS = 32  # of a member's part; below, the products are too thin to share
MAX_IMBALANCE = 1.3  # largest part over the mean part; above, all cores on one forward are faster

T = TypeVar("T")
_Task = tuple[Future[Any], Callable[[], Any]]


class Team:
    """Runs the parts of a batch side by side.

    Torch's own way, all cores on each operation, waits for the slowest core some 60 times a layer.
    On an idle machine that costs a few percent; beside one other busy process, on two cores, it is
    20 times as slow, because the waiting core spins through its whole time slice. Members of a
    team wait for each other once a forward.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_members = min(num_threads, MAX_MEMBERS)
        self._num_threads = num_threads
        self._tasks: SimpleQueue[_Task | None] | None = None  # once the members have started

    def run(
        self, forward: Callable[[PackedBatch], torch.Tensor], batch: PackedBatch
    ) -> torch.Tensor:
        """Return forward(batch), (B, H), computed part by part where that is faster."""
        lengths = batch.lengths
        parts = share_out(lengths.tolist(), self.num_members)
        tokens = [int(lengths[rows].sum()) for rows in parts]
        is_even = max(tokens) * self.num_members <= MAX_IMBALANCE * sum(tokens)
        if self.num_members == 1 or min(tokens) < MIN_TOKENS or not is_even:
            return forward(batch)
        if self._tasks is None:
            self._tasks = self._start()
        futures: list[Future[torch.Tensor]] = []
        for rows in parts:
            part, future = batch.select(rows), Future[torch.Tensor]()
            self._tasks.put((future, lambda part=part: forward(part)))
            futures.append(future)
        wait(futures)  # all of them: a part that failed is tried again on idle cores
        together = torch.cat([future.result() for future in futures])  # (B, H), part by part
        order = torch.from_numpy(np.argsort(np.concatenate(parts)))
        return together[order]

    def _start(self) -> SimpleQueue[_Task | None]:
        num_threads = torch.get_num_threads()
        tasks: SimpleQueue[_Task | None] = SimpleQueue()
        limited = threading.Barrier(self.num_members + 1)
        share = max(1, self._num_threads // self.num_members)
        for _ in range(self.num_members):
            threading.Thread(
                target=_work, args=(tasks, share, limited), name="qwen3-member", daemon=True
            ).start()
        limited.wait()
        torch.set_num_threads(num_threads)  # what new threads of others begin with
        weakref.finalize(self, _dismiss, tasks, self.num_members).atexit = False
        return tasks


def on_fresh_thread(function: Callable[[], T]) -> T:
    """Return function(), computed on a thread that ends with it."""
    future = Future[T]()
    threading.Thread(target=_answer, args=(future, function), daemon=True).start()
    return future.result()


def _work(tasks: SimpleQueue[_Task | None], num_threads: int, limited: threading.Barrier) -> None:
    """Limit torch's operations on this thread, then answer tasks until there are none."""
    torch.get_num_threads()  # or torch's first operation would set the limit back
    torch.set_num_threads(num_threads)
    limited.wait()
    while (task := tasks.get()) is not None:
        _answer(*task)
        del task  # while it waits, a member holds no tensors


def _answer(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


def _dismiss(tasks: SimpleQueue[_Task | None], num_members: int) -> None:
    for _ in range(num_members):
        tasks.put(None)


def share_out(lengths: list[int], num_parts: int) -> list[np.ndarray]:
    """Return the rows of each part: the longest first, each to the part that has least so far."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    tokens = [0] * num_parts
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        least = tokens.index(min(tokens))
        parts[least].append(row)
        tokens[least] += lengths[row]
    return [np.array(sorted(rows), np.intp) for rows in parts]
