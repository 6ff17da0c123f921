"""A submitted call, the shares it is cut into, and the two lanes in which shares wait."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..errors import EngineClosedError
from .packing import PackedBatch

Vectors = npt.NDArray[np.float32]

MAX_OVERTAKING_FORWARDS = 8  # after so many forwards of single calls, a waiting bulk share runs
MAX_SKIPPED_SHARES = 64  # how far back the queue is searched for what still fits


@dataclass(slots=True, eq=False, weakref_slot=True)
class Call:
    """One submitted call: where its vectors are written, and what is still missing."""

    vectors: Vectors  # (N, W)
    num_missing: int
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

    def __init__(self) -> None:
        self.closed_because: str | None = None
        self._calls: deque[Share] = deque()  # calls that fit one forward
        self._bulk: deque[Share] = deque()  # shares of larger calls
        self._open_calls: weakref.WeakSet[Call] = weakref.WeakSet()  # whoever waits holds their own
        self._num_overtaking = 0
        # Reentrant: the garbage collector may stop an engine from within any allocation.
        self._wakeup = threading.Condition(threading.RLock())

    def add(self, call: Call, shares: Sequence[Share]) -> None:
        """Queue a call's shares. Raises EngineClosedError."""
        with self._wakeup:
            if self.closed_because is not None:
                raise EngineClosedError(self.closed_because)
            self._open_calls.add(call)
            (self._calls if len(shares) == 1 else self._bulk).extend(shares)
            self._wakeup.notify(len(shares))

    def put_back(self, shares: Sequence[Share]) -> None:
        """Queue what a forward has failed, before all others."""
        with self._wakeup:
            self._calls.extendleft(reversed(shares))
            self._wakeup.notify(len(shares))

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

    def take(self, max_tokens: int, *, wait: bool) -> list[Share] | None:
        """Return the shares of the next forward, none if nothing waits; None once closed."""
        with self._wakeup:
            while self.closed_because is None:
                overtaken = bool(self._bulk) and self._num_overtaking >= MAX_OVERTAKING_FORWARDS
                lanes = [self._bulk, self._calls] if overtaken else [self._calls, self._bulk]
                for lane in lanes:
                    if shares := _take(lane, max_tokens):
                        overtakes = lane is self._calls and bool(self._bulk)
                        self._num_overtaking = self._num_overtaking + 1 if overtakes else 0
                        return shares
                if not wait:
                    return []
                self._wakeup.wait()
            return None


def _take(lane: deque[Share], room: int) -> list[Share]:
    """Take the first share that waits and what fits beside it: same prefix, one budget."""
    shares: list[Share] = []
    skipped: list[Share] = []
    while lane and room > 0 and len(skipped) < MAX_SKIPPED_SHARES:
        share = lane.popleft()
        if share.call.future.done():  # failed or cancelled
            continue
        while not shares and share.batch.num_keys > room and len(share.batch) > 1:
            share, rest = share.split()  # the budget has shrunk since it was planned
            lane.appendleft(rest)
        fits = share.batch.num_keys <= room
        if not shares or (
            fits and not share.runs_alone and share.batch.prefix_ids == shares[0].batch.prefix_ids
        ):
            shares.append(share)
            room = 0 if share.runs_alone else room - share.batch.num_keys
        else:
            skipped.append(share)
    lane.extendleft(reversed(skipped))
    return shares
