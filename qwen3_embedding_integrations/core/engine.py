"""The thread that owns the device: calls in, futures out, merged without a timer.

While a forward runs, calls pile up; when it ends, those that wait and fit the token budget run
together. An idle device starts at once. A call that fits one forward goes before the shares of a
bulk call, so a search never waits for an import. When a forward fails, its shares go back to the
front of the queue: in smaller batches after out-of-memory, one by one after anything else, so
that no caller is harmed by another's text.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from ..errors import (
    DeviceOutOfMemoryError,
    EngineClosedError,
    EngineError,
    Qwen3EmbeddingError,
)
from .batching import Group, pack_groups
from .packing import Int32Array, PackedBatch

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]
Launch = Callable[[PackedBatch], Callable[[], Vectors]]  # the inner call waits for (B, H)

MAX_OVERTAKING_FORWARDS = 8  # after so many forwards of single calls, a waiting bulk share runs
FORWARDS_TO_GROW = 64  # good forwards before a lowered budget is raised; doubled at each failure
MAX_SKIPPED_SHARES = 64  # how far back the queue is searched for what still fits


@dataclass(slots=True, eq=False, weakref_slot=True)
class Call:
    """One submitted call: where its vectors are written, and what is still missing."""

    vectors: Vectors  # (N, W)
    num_missing: int
    future: Future[Vectors] = field(default_factory=Future)

    def write(self, rows: npt.NDArray[np.intp], vectors: Vectors) -> None:
        """Put results (B, R) into their rows; what is cut to W is made a unit vector again."""
        width = self.vectors.shape[1]
        if width < vectors.shape[1]:
            vectors = vectors[:, :width]
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors[rows] = vectors
        self.num_missing -= len(rows)
        if self.num_missing == 0:
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                self.future.set_result(self.vectors)

    def fail(self, error: BaseException) -> None:
        """Answer with an error, unless the caller has gone."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """The part of a call that runs in one forward."""

    batch: PackedBatch
    rows: npt.NDArray[np.intp]  # (B,) where each vector goes in call.vectors
    call: Call
    runs_alone: bool = False  # its last forward, shared with others, failed

    def split(self) -> tuple[_Share, _Share]:
        left, right = self.batch.split()
        return (
            replace(self, batch=left, rows=self.rows[: len(left)]),
            replace(self, batch=right, rows=self.rows[len(left) :]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """A launched forward."""

    shares: list[_Share]
    batch: PackedBatch
    wait: Callable[[], Vectors]


class Engine:
    """Runs `launch` on a thread of its own for callers on any thread."""

    def __init__(
        self,
        launch: Launch,
        *,
        width: int,
        max_batch_tokens: int,
        device: str,
        max_in_flight: int = 1,
    ) -> None:
        self.width = width
        self.max_batch_tokens = max_batch_tokens
        self.num_forwards = 0
        self.num_retries = 0
        self._launch = launch
        self._device = device
        self._max_in_flight = max_in_flight
        self._calls: deque[_Share] = deque()  # calls that fit one forward
        self._bulk: deque[_Share] = deque()  # shares of larger calls
        self._in_flight: deque[_Flight] = deque()
        self._open_calls: weakref.WeakSet[Call] = weakref.WeakSet()  # whoever waits holds their own
        self._num_overtaking = 0
        self._first_budget = max_batch_tokens
        self._num_since_shrunk = 0
        self._num_forwards_to_grow = FORWARDS_TO_GROW
        # Reentrant: the garbage collector may stop an engine from within any allocation.
        self._wakeup = threading.Condition(threading.RLock())
        self._closed_because: str | None = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="qwen3-engine", daemon=True)
        self._thread.start()
        _running.add(self)

    def submit(
        self, token_ids: Sequence[Int32Array], prefix_ids: tuple[int, ...] = (), *, width: int = 0
    ) -> Call:
        """Queue N sequences, each to be read after `prefix_ids`.

        The call's future holds their results, (N, width) float32, in the order given;
        width 0 is the head's own.
        Cancelling the future drops what has not run yet. Raises EngineClosedError.
        """
        return self.submit_groups([(token_ids, prefix_ids)], width=width)

    def submit_groups(self, groups: Sequence[Group], *, width: int = 0) -> Call:
        """Queue N sequences as one call, as `submit` does; each group has a prefix of its own."""
        num_texts = sum(len(token_ids) for token_ids, _ in groups)
        call = Call(np.empty((num_texts, width or self.width), np.float32), num_texts)
        if not num_texts:
            call.future.set_result(call.vectors)
            return call
        packed = pack_groups(groups, self.max_batch_tokens)
        shares = [_Share(batch, rows, call) for batch, rows in packed]
        if os.getpid() != self._pid:  # before any lock: a fork may have copied it locked
            raise EngineClosedError(
                f"this encoder belongs to process {self._pid} and does not survive a fork; call "
                "shared_encoder(config) in the child, or start it by spawn"
            )
        with self._wakeup:
            if self._closed_because is not None:
                raise EngineClosedError(self._closed_because)
            self._open_calls.add(call)
            (self._calls if len(shares) == 1 else self._bulk).extend(shares)
            self._wakeup.notify()
        return call

    @property
    def is_closed(self) -> bool:
        """Whether calls are refused: closed, or a copy that a fork made."""
        return self._closed_because is not None or os.getpid() != self._pid

    def stop(self) -> None:
        """Close without waiting: the forward under way is answered, what waits fails."""
        if os.getpid() == self._pid:
            self._stop("the encoder is closed")

    def close(self) -> None:
        """Close and wait until every call has been answered or failed."""
        self.stop()
        if os.getpid() == self._pid and threading.current_thread() is not self._thread:
            self._thread.join()

    def _stop(self, reason: str) -> None:
        with self._wakeup:
            self._closed_because = self._closed_because or reason
            self._wakeup.notify()

    def _serve(self) -> None:
        try:
            while self._step():
                pass
            while self._in_flight:
                self._finish(self._in_flight.popleft())
        except BaseException as error:  # a bug of ours: no caller may wait for ever
            logger.exception("the engine's thread ended")
            self._stop(f"the engine's thread ended: {error!r}")
        finally:
            with self._wakeup:
                self._calls.clear()
                self._bulk.clear()
                unanswered = [call for call in self._open_calls if not call.future.done()]
            for call in unanswered:
                call.fail(EngineClosedError(self._closed_because or "the encoder is closed"))
            del self._launch  # and with it the weights

    def _step(self) -> bool:
        """Launch what waits, finish what is due; False once closed. Keeps no call in a local."""
        shares = self._next_shares(wait=not self._in_flight)
        if shares is None:
            return False
        if shares:
            self._in_flight.append(self._start(shares))
        if self._in_flight and (not shares or len(self._in_flight) >= self._max_in_flight):
            self._finish(self._in_flight.popleft())
        return True

    def _next_shares(self, *, wait: bool) -> list[_Share] | None:
        """Return the shares of the next forward, none if nothing waits; None once closed."""
        with self._wakeup:
            while self._closed_because is None:
                overtaken = bool(self._bulk) and self._num_overtaking >= MAX_OVERTAKING_FORWARDS
                lanes = [self._bulk, self._calls] if overtaken else [self._calls, self._bulk]
                for lane in lanes:
                    if shares := self._take(lane):
                        overtakes = lane is self._calls and bool(self._bulk)
                        self._num_overtaking = self._num_overtaking + 1 if overtakes else 0
                        return shares
                if not wait:
                    return []
                self._wakeup.wait()
            return None

    def _take(self, lane: deque[_Share]) -> list[_Share]:
        """Take the first share that waits and what fits beside it: same prefix, one budget."""
        shares: list[_Share] = []
        skipped: list[_Share] = []
        room = self.max_batch_tokens
        while lane and room > 0 and len(skipped) < MAX_SKIPPED_SHARES:
            share = lane.popleft()
            if share.call.future.done():  # failed or cancelled
                continue
            while not shares and share.batch.num_keys > room and len(share.batch) > 1:
                share, rest = share.split()  # the budget has shrunk since it was planned
                lane.appendleft(rest)
            fits = share.batch.num_keys <= room
            if not shares or (
                fits
                and not share.runs_alone
                and share.batch.prefix_ids == shares[0].batch.prefix_ids
            ):
                shares.append(share)
                room = 0 if share.runs_alone else room - share.batch.num_keys
            else:
                skipped.append(share)
        lane.extendleft(reversed(skipped))
        return shares

    def _start(self, shares: list[_Share]) -> _Flight:
        batch = PackedBatch.join([share.batch for share in shares])
        self.num_forwards += 1
        try:
            return _Flight(shares, batch, self._launch(batch))
        except Exception as error:
            # Without its traceback, which holds the failed forward's tensors.
            return _Flight(shares, batch, _raiser(error.with_traceback(None)))

    def _finish(self, flight: _Flight) -> None:
        try:
            vectors = flight.wait()
        except Exception as error:
            failure = error.with_traceback(None)
        else:
            if len(vectors) != len(flight.batch):
                raise EngineError(f"{len(flight.batch)} sequences gave {len(vectors)} vectors")
            self._grow()
            stop = 0
            for share in flight.shares:
                start, stop = stop, stop + len(share.batch)
                share.call.write(share.rows, vectors[start:stop])
            return
        self._recover(flight, failure)

    def _grow(self) -> None:
        """Try twice the room again after many good forwards: memory may be there again."""
        self._num_since_shrunk += 1
        if (
            self.max_batch_tokens < self._first_budget
            and self._num_since_shrunk >= self._num_forwards_to_grow
        ):
            self.max_batch_tokens = min(self._first_budget, self.max_batch_tokens * 2)
            self._num_since_shrunk = 0

    def _recover(self, flight: _Flight, failure: Exception) -> None:
        """Send a failed forward's shares back to the queue, or tell the one caller it concerns."""
        shares = flight.shares
        if _is_out_of_memory(failure):
            if self._device.startswith("cuda"):
                torch.cuda.empty_cache()
            if len(flight.batch) == 1:
                num_tokens = flight.batch.num_keys
                error = DeviceOutOfMemoryError(num_tokens=num_tokens, device=self._device)
                error.__cause__ = failure
                return shares[0].call.fail(error)
            budget = min(self.max_batch_tokens, max(1, flight.batch.num_keys // 2))
            logger.warning(
                "%s ran out of memory at %d tokens; batches hold at most %d for now",
                self._device,
                flight.batch.num_keys,
                budget,
            )
            self.max_batch_tokens = budget
            self._num_forwards_to_grow *= 2
            self._num_since_shrunk = 0
        elif len(shares) == 1:
            if not isinstance(failure, Qwen3EmbeddingError):
                error = EngineError(f"the forward failed: {failure}")
                error.__cause__ = failure
                failure = error
            return shares[0].call.fail(failure)
        else:
            shares = [replace(share, runs_alone=True) for share in shares]
        self.num_retries += 1
        with self._wakeup:
            self._calls.extendleft(reversed(shares))
        return None


def _raiser(error: Exception) -> Callable[[], Vectors]:
    def wait() -> Vectors:
        raise error

    return wait


def _is_out_of_memory(error: Exception) -> bool:
    # Only CUDA has an error class of its own; any other RuntimeError is not a matter of room.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and not isinstance(error, EngineError)
        and any(text in str(error) for text in ("can't allocate memory", "MPS backend out of mem"))
    )


_running: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A daemon thread that is inside torch while the interpreter goes down can crash the process.
    for engine in list(_running):
        engine.close()
