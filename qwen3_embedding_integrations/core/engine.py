"""The threads that own the devices, one each: calls in, futures out, merged without a timer.

While a forward runs, calls pile up; when it ends, those that wait and fit the token budget run
together. An idle device starts at once; with several, whichever is free takes what is next, so
each gets as much as it is fast. On a CPU a second thread runs short calls beside a long forward:
the operating system shares the cores more finely than the queue can. When a forward fails, its
shares go back to the front of the queue: in smaller batches after out-of-memory, one by one after
anything else, so that no caller is harmed by another's text.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import DeviceOutOfMemoryError, EngineClosedError, EngineError, Qwen3EmbeddingError
from .batching import Group, pack_groups
from .calls import Call, EngineCounts, Share, Vectors, Waiting
from .memory import is_out_of_memory, return_freed
from .packing import Int32Array, PackedBatch

logger = logging.getLogger(__name__)

Launch = Callable[[PackedBatch], Callable[[], Vectors]]  # the inner call waits for (B, H)

FORWARDS_TO_GROW = 64  # good forwards before a lowered budget is raised; doubled at each failure


@dataclass(frozen=True, slots=True, eq=False)
class Runner:
    """A device that runs forwards."""

    launch: Launch
    name: str
    max_batch_tokens: int
    max_in_flight: int = 1
    probe: Callable[[], None] | None = None  # asked after a failure: raises if the device is lost
    beside_tokens: int = 0  # > 0: runs only what fits, beside another's forward of so many tokens
    prepare: Callable[[], object] = object  # run first, on its thread


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """A launched forward."""

    shares: list[Share]
    batch: PackedBatch
    wait: Callable[[], Vectors]


class Engine:
    """Runs each runner on a thread of its own for callers on any thread."""

    def __init__(
        self, runners: Sequence[Runner], *, width: int, max_queue_tokens: int | None = None
    ) -> None:
        self.width = width
        self._waiting = Waiting(max_queue_tokens)
        self._pid = os.getpid()
        self._workers = [_Worker(runner, self._waiting, self._left) for runner in runners]
        self._main = [worker for worker in self._workers if not worker.beside_tokens]
        self._lock = threading.Lock()
        self._num_serving = len(runners)
        for worker in self._workers:
            worker.thread.start()
        _running.add(self)

    def submit(
        self, token_ids: Sequence[Int32Array], prefix_ids: tuple[int, ...] = (), *, width: int = 0
    ) -> Call:
        """Queue N sequences, each to be read after `prefix_ids`.

        The call's future holds their results, (N, width) float32, in the order given;
        width 0 is the head's own.
        Cancelling the future drops what has not run yet. Raises EngineClosedError, QueueFullError.
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
        shares = [Share(batch, rows, call) for batch, rows in packed]
        if os.getpid() != self._pid:  # before any lock: a fork may have copied it locked
            raise EngineClosedError(
                f"this encoder belongs to process {self._pid} and does not survive a fork; call "
                "shared_encoder(config) in the child, or start it by spawn"
            )
        self._waiting.add(call, shares)
        return call

    @property
    def max_batch_tokens(self) -> int:
        """Tokens of a forward at most, on the device with the least room."""
        return min(worker.max_batch_tokens for worker in self._main)

    @property
    def num_forwards(self) -> int:
        """Forwards so far, of all devices."""
        return sum(worker.num_forwards for worker in self._workers)

    @property
    def num_retries(self) -> int:
        """Forwards so far that failed and were run again in parts."""
        return sum(worker.num_retries for worker in self._workers)

    def counts(self) -> EngineCounts:
        """Return what has been done so far, of all devices, and what waits."""
        workers = self._workers
        fills = np.sum([worker.fills for worker in workers], axis=0, dtype=int)
        return EngineCounts(
            waiting_calls=self._waiting.num_calls,
            waiting_tokens=self._waiting.num_tokens,
            max_batch_tokens=self.max_batch_tokens,
            forwards=self.num_forwards,
            retries=self.num_retries,
            out_of_memory=sum(worker.num_out_of_memory for worker in workers),
            tokens=sum(worker.num_tokens for worker in workers),
            fills=tuple(fills.tolist()),
        )

    @property
    def forwards_by_device(self) -> dict[str, int]:
        """Forwards so far of each device."""
        names = dict.fromkeys(one.name for one in self._workers)
        return {n: sum(w.num_forwards for w in self._workers if w.name == n) for n in names}

    @property
    def is_closed(self) -> bool:
        """Whether calls are refused: closed, or a copy that a fork made."""
        return self._waiting.closed_because is not None or os.getpid() != self._pid

    def stop(self) -> None:
        """Close without waiting: forwards under way are answered, what waits fails."""
        if os.getpid() == self._pid:
            self._waiting.close("the encoder is closed")

    def close(self) -> None:
        """Close and wait until every call has been answered or failed."""
        self.stop()
        if os.getpid() == self._pid:
            for worker in self._workers:
                if threading.current_thread() is not worker.thread:
                    worker.thread.join()

    def _left(self, reason: str) -> None:
        """Note that a worker's thread ends: the last one answers whoever still waits."""
        with self._lock:
            self._num_serving -= 1
            is_last = self._num_serving == 0
        if is_last:
            self._waiting.close(reason)
            self._waiting.fail_all()
            return_freed()  # the weights


class _Worker:
    """Runs one device's forwards, on a thread of its own."""

    def __init__(self, runner: Runner, waiting: Waiting, left: Callable[[str], None]) -> None:
        self.name = runner.name
        self.max_batch_tokens = self._first_budget = runner.max_batch_tokens
        self.num_forwards = 0
        self.num_retries = 0
        self.num_out_of_memory = 0
        self.num_tokens = 0
        self.fills = [0] * 10  # forwards by tenths of the budget
        self._launch = runner.launch
        self._probe = runner.probe
        self._max_in_flight = runner.max_in_flight
        self.beside_tokens = runner.beside_tokens
        self._prepare = runner.prepare
        self._waiting = waiting
        self._left = left
        self._in_flight = deque[_Flight]()
        self._lost: str | None = None  # why the device will answer no more
        self._num_since_shrunk = 0
        self._num_forwards_to_grow = FORWARDS_TO_GROW
        role = "beside" if runner.beside_tokens else "engine"
        self.thread = threading.Thread(target=self._serve, name=f"qwen3-{role}", daemon=True)

    def _serve(self) -> None:
        try:
            self._prepare()
            while self._lost is None and self._step():
                pass
            while self._in_flight:
                self._finish(self._in_flight.popleft())
        except BaseException as error:  # a bug of ours: no caller may wait for ever
            logger.exception("the engine's thread ended")
            self._waiting.close(f"the engine's thread ended: {error!r}")
        finally:
            del self._launch, self._probe, self._prepare  # and with them the weights
            self._left(self._lost or "the encoder is closed")

    def _step(self) -> bool:
        """Launch what waits, finish what is due; False once closed. Keeps no call in a local."""
        shares = self._waiting.take(
            self.max_batch_tokens, wait=not self._in_flight, beside_tokens=self.beside_tokens
        )
        if shares is None:
            return False
        if shares:
            self._in_flight.append(self._start(shares))
        is_full = len(self._in_flight) >= self._max_in_flight
        if self._in_flight and (not shares or is_full):
            self._finish(self._in_flight.popleft())
        return True

    def _start(self, shares: list[Share]) -> _Flight:
        batch = PackedBatch.join([share.batch for share in shares])
        self.num_forwards += 1
        self.num_tokens += batch.num_keys
        self.fills[min(9, (10 * batch.num_keys - 1) // self.max_batch_tokens)] += 1
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
        if is_out_of_memory(failure):
            self.num_out_of_memory += 1
            if self.name.startswith("cuda"):
                import torch  # here alone: an exported model runs without it

                torch.cuda.empty_cache()
            if len(flight.batch) == 1:
                num_tokens, name = flight.batch.num_keys, self.name
                error = DeviceOutOfMemoryError(num_tokens=num_tokens, device=name)
                error.__cause__ = failure
                return shares[0].call.fail(error)
            self._shrink(flight.batch.num_keys)
        elif self._is_lost_by(failure):
            return self._leave(shares, failure)
        elif len(shares) == 1:
            if not isinstance(failure, Qwen3EmbeddingError):
                error = EngineError(f"the forward failed: {failure}")
                error.__cause__ = failure
                failure = error
            return shares[0].call.fail(failure)
        else:
            shares = [replace(share, runs_alone=True) for share in shares]
        self.num_retries += 1
        self._waiting.put_back(shares)
        return None

    def _shrink(self, num_tokens: int) -> None:
        """Lower the budget after a forward of so many tokens found no room."""
        self.max_batch_tokens = min(self.max_batch_tokens, max(1, num_tokens // 2))
        self._num_forwards_to_grow *= 2
        self._num_since_shrunk = 0
        logger.warning(
            "%s ran out of memory at %d tokens; batches hold at most %d for now",
            self.name,
            num_tokens,
            self.max_batch_tokens,
        )

    def _is_lost_by(self, failure: Exception) -> bool:
        """Whether the device will never answer again, not only to this forward.

        After some errors of a kernel every later call on the device fails, at once: it would take
        all that waits and fail it.
        """
        if self._probe is None or isinstance(failure, Qwen3EmbeddingError):
            return False
        try:
            self._probe()
        except Exception:
            return True
        return False

    def _leave(self, shares: list[Share], failure: Exception) -> None:
        """Fail the calls of the forward that lost the device, and serve no more."""
        self._lost = f"{self.name} is lost: {failure}; start the process anew"
        logger.error("%s", self._lost)
        for share in shares:
            error = EngineError(self._lost)
            error.__cause__ = failure
            share.call.fail(error)


def _raiser(error: Exception) -> Callable[[], Vectors]:
    def wait() -> Vectors:
        raise error

    return wait


_running: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A daemon thread that is inside torch while the interpreter goes down can crash the process.
    for engine in list(_running):
        engine.close()
