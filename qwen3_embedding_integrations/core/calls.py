"""A submitted call, the shares it is cut into, and the two lanes in which shares wait."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import EngineClosedError, QueueFullError
from .packing import PackedBatch
from .streaming import Vectors

MAX_OVERTAKING_FORWARDS = 8  # after so many forwards of single calls, a waiting bulk share runs
MAX_SKIPPED_SHARES = 64  # how far back the queue is searched for what still fits


class EngineCounts(NamedTuple):
    """What an engine has done since it was made, and what waits now."""

    waiting_calls: int  # not answered yet, forwards under way among them
    waiting_tokens: int
    max_batch_tokens: int
    forwards: int
    retries: int  # forwards that failed and were run again in parts
    out_of_memory: int  # forwards that found no room
    tokens: int  # of all forwards, prefixes included
    fills: tuple[int, ...]  # forwards that were at most 10 %, 20 %, … 100 % and more full


@dataclass(slots=True, eq=False, weakref_slot=True)
class Call:
    """One submitted call: where its vectors are written, and what is still missing."""

    vectors: Vectors  # (N, W)
    num_missing: int
    num_waiting_tokens: int = 0  # of shares in the queue; guarded by its lock
    future: Future[Vectors] = field(default_factory=Future)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # devices write side by side

    def write(self, rows: npt.NDArray[np.intp], vectors: Vectors) -> None:
        """Put results (B, R) into their rows; what is cut to W is made a unit vector again."""
        width = self.vectors.shape[1]
        if width < vectors.shape[1]:
            vectors = vectors[:, :width]
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors[rows] = vectors
        with self._lock:
            self.num_missing -= len(rows)
            is_answered = self.num_missing == 0
        if is_answered:
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                self.future.set_result(self.vectors)

    def fail(self, error: BaseException) -> None:
        """Answer with an error, unless the caller has gone."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """The part of a call that runs in one forward."""

    batch: PackedBatch
    rows: npt.NDArray[np.intp]  # (B,) where each vector goes in call.vectors
    call: Call
    runs_alone: bool = False  # its last forward, shared with others, failed

    def split(self) -> tuple[Share, Share]:
        """Return two shares of about half the tokens each."""
        left, right = self.batch.split()
        return (
            replace(self, batch=left, rows=self.rows[: len(left)]),
            replace(self, batch=right, rows=self.rows[len(left) :]),
        )


class Waiting:
    """The shares that wait, for however many devices: whichever is free takes the next.

    A call that fits one forward goes before the shares of a bulk call.
    """

    def __init__(self, max_queue_tokens: int | None = None) -> None:
        self.closed_because: str | None = None
        self.num_tokens = 0  # of shares that wait and whose callers are there
        self._max_queue_tokens = max_queue_tokens
        self._calls: deque[Share] = deque()  # calls that fit one forward
        self._bulk: deque[Share] = deque()  # shares of larger calls
        self._open_calls: weakref.WeakSet[Call] = weakref.WeakSet()  # whoever waits holds their own
        self._num_overtaking = 0
        self._tokens_under_way = 0  # of the forward that was taken last
        # Reentrant: the garbage collector may stop an engine from within any allocation.
        self._wakeup = threading.Condition(threading.RLock())

    def add(self, call: Call, shares: Sequence[Share]) -> None:
        """Queue a call's shares. Raises EngineClosedError, QueueFullError."""
        num_tokens = sum(share.batch.num_keys for share in shares)
        with self._wakeup:
            if self.closed_because is not None:
                raise EngineClosedError(self.closed_because)
            most = self._max_queue_tokens
            if most is not None and 0 < self.num_tokens > most - num_tokens:
                raise QueueFullError(
                    num_tokens=num_tokens, num_waiting_tokens=self.num_tokens, max_queue_tokens=most
                )
            self._open_calls.add(call)
            self._count(call, num_tokens)
            (self._calls if len(shares) == 1 else self._bulk).extend(shares)
            self._wakeup.notify_all()  # one woken alone might be the one that must not run it
        # A caller who leaves gives back the room at once, not when the queue reaches the shares.
        held = weakref.ref(call)
        call.future.add_done_callback(lambda _: self._forget(held()))

    def put_back(self, shares: Sequence[Share]) -> None:
        """Queue what a forward has failed, before all others."""
        with self._wakeup:
            for share in shares:
                if not share.call.future.done():
                    self._count(share.call, share.batch.num_keys)
            self._calls.extendleft(reversed(shares))
            self._wakeup.notify_all()

    def close(self, reason: str) -> None:
        """Let no one wait or take any more; the first reason counts."""
        with self._wakeup:
            self.closed_because = self.closed_because or reason
            self._wakeup.notify_all()

    def fail_all(self) -> None:
        """Answer every call that is still open with EngineClosedError; after `close`."""
        with self._wakeup:
            self._calls.clear()
            self._bulk.clear()
            unanswered = [call for call in self._open_calls if not call.future.done()]
        for call in unanswered:
            call.fail(EngineClosedError(self.closed_because or "the encoder is closed"))

    def take(self, max_tokens: int, *, wait: bool, beside_tokens: int = 0) -> list[Share] | None:
        """Return the shares of the next forward, none if nothing waits; None once closed.

        With `beside_tokens`, only calls of at most `max_tokens`, and nothing unless a forward of
        that many tokens is under way elsewhere.
        """
        with self._wakeup:
            if not beside_tokens:
                self._tokens_under_way = 0
            while self.closed_because is None:
                if not beside_tokens:
                    shares = self._next(max_tokens)
                elif self._tokens_under_way >= beside_tokens:
                    shares = _take(self._calls, max_tokens, must_fit=True)
                else:
                    shares = []
                if shares:
                    num_tokens = 0
                    for share in shares:
                        self._count(share.call, -share.batch.num_keys)
                        num_tokens += share.batch.num_keys
                    if not beside_tokens:
                        self._tokens_under_way = num_tokens
                        self._wakeup.notify_all()  # what is left may run beside it
                    return shares
                if not wait:
                    return []
                self._wakeup.wait()
            return None

    def _next(self, max_tokens: int) -> list[Share]:
        overtaken = bool(self._bulk) and self._num_overtaking >= MAX_OVERTAKING_FORWARDS
        lanes = [self._bulk, self._calls] if overtaken else [self._calls, self._bulk]
        for lane in lanes:
            if shares := _take(lane, max_tokens):
                overtakes = lane is self._calls and bool(self._bulk)
                self._num_overtaking = self._num_overtaking + 1 if overtakes else 0
                return shares
        return []

    @property
    def num_calls(self) -> int:
        """Calls that are not answered yet, forwards under way among them."""
        with self._wakeup:
            return sum(not call.future.done() for call in self._open_calls)

    def _count(self, call: Call, num_tokens: int) -> None:
        call.num_waiting_tokens += num_tokens
        self.num_tokens += num_tokens

    def _forget(self, call: Call | None) -> None:
        if call is not None:
            with self._wakeup:
                self._count(call, -call.num_waiting_tokens)


def _take(lane: deque[Share], room: int, *, must_fit: bool = False) -> list[Share]:
    """Take the first share that waits and what fits beside it: same prefix, one budget.

    The first is split, or taken though it is larger, unless it `must_fit`.
    """
    shares: list[Share] = []
    skipped: list[Share] = []
    while lane and room > 0 and len(skipped) < MAX_SKIPPED_SHARES:
        share = lane.popleft()
        if share.call.future.done():  # failed or cancelled
            continue
        while not (shares or must_fit) and share.batch.num_keys > room and len(share.batch) > 1:
            share, rest = share.split()  # the budget has shrunk since it was planned
            lane.appendleft(rest)
        fits = share.batch.num_keys <= room
        if shares:
            joins = not share.runs_alone and share.batch.prefix_ids == shares[0].batch.prefix_ids
            is_taken = fits and joins
        else:
            is_taken = fits or not must_fit
        if is_taken:
            shares.append(share)
            room = 0 if share.runs_alone else room - share.batch.num_keys
        else:
            skipped.append(share)
    lane.extendleft(reversed(skipped))
    return shares
