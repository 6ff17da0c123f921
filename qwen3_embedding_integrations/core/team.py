"""A batch's texts shared out among threads, each computing by itself on its part of the cores."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial

import numpy as np
import torch

from ..errors import ConfigError
from .packing import PackedBatch
from .workers import Workers, on_fresh_thread

MAX_MEMBERS = 16  # more threads would wait for Python's lock; each takes several cores instead
MIN_TOKENS = 32  # of a member's part; below, the products are too thin to share
NICE = "QWEN3_EMBEDDING_BULK_NICE"  # environment: how far members give way to other threads, Linux
_limiting = threading.Lock()
EQUAL_TOKENS = 2000  # of a text in which attention takes as long as all else (0.6B, int8)


class Team:
    """Runs the parts of a batch side by side.

    Torch's own way, all cores on each operation, waits for the slowest core some 60 times a layer.
    On an idle machine that costs a few percent; beside one other busy process, on two cores, it is
    20 times as slow, because the waiting core spins through its whole time slice. Members of a
    team wait for each other once a forward.
    """

    def __init__(self, num_threads: int, max_imbalance: float = 1.3) -> None:
        """Largest over mean part above `max_imbalance`: all cores on one forward are faster."""
        self._max_imbalance = max_imbalance
        self.num_members = min(num_threads, MAX_MEMBERS)
        self._num_threads = num_threads
        self._niceness = _read_niceness()
        self._members: Workers | None = None
        self._is_busy = threading.Lock()

    def run(
        self, forward: Callable[[PackedBatch], torch.Tensor], batch: PackedBatch
    ) -> torch.Tensor:
        """Return forward(batch), (B, H), computed part by part where that is faster."""
        lengths = batch.lengths
        costs = lengths * (1 + lengths / EQUAL_TOKENS)
        parts = share_out(costs.tolist(), self.num_members)
        tokens = [int(lengths[rows].sum()) for rows in parts]
        largest = max(float(costs[rows].sum()) for rows in parts)
        is_even = largest * self.num_members <= self._max_imbalance * float(costs.sum())
        if self.num_members == 1 or min(tokens) < MIN_TOKENS or not is_even:
            return forward(batch)
        if not self._is_busy.acquire(blocking=False):
            return forward(batch)  # beside a long forward: its parts would come first
        try:
            members = self._members = self._members or self._start()
            batches = [batch.select(rows) for rows in parts]
            futures = [members.submit(partial(forward, part)) for part in batches]
            wait(futures)  # all of them: a part that failed is tried again on idle cores
        finally:
            self._is_busy.release()
        together = torch.cat([future.result() for future in futures])  # (B, H), part by part
        order = torch.from_numpy(np.argsort(np.concatenate(parts)))
        return together[order]

    def _start(self) -> Workers:
        share, niceness = max(1, self._num_threads // self.num_members), self._niceness

        def prepare() -> None:  # without self: the members' threads would hold their team
            limit_threads(share)
            if niceness and sys.platform == "linux":  # elsewhere it is the process's
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)

        return Workers(self.num_members, "qwen3-member", prepare=prepare)


def limit_threads(num_threads: int) -> None:
    """Let this thread's operations, and no others', use so many cores."""
    with _limiting:
        torch.get_num_threads()  # or torch's first operation would set the limit back
        # What is set is also what every thread begins with whose first operation is yet to come.
        before = on_fresh_thread(torch.get_num_threads)
        torch.set_num_threads(num_threads)
        on_fresh_thread(lambda: torch.set_num_threads(before))


def _read_niceness() -> int:
    text = os.environ.get(NICE, "0")
    if not (text.isdecimal() and int(text) <= 19):
        raise ConfigError(f"{NICE} is {text!r}; choose a number from 0 to 19")
    return int(text)


def share_out(costs: list[float], num_parts: int) -> list[np.ndarray]:
    """Return the rows of each part: the dearest first, each to the part that has least so far."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    sums = [0.0] * num_parts
    for row in sorted(range(len(costs)), key=lambda row: -costs[row]):
        least = sums.index(min(sums))
        parts[least].append(row)
        sums[least] += costs[row]
    return [np.array(sorted(rows), np.intp) for rows in parts]
