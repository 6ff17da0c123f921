"""A job's middle: two windows are encoded while one is written; passing faults are outlasted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import compress
from threading import Event
from typing import NamedTuple, TypeVar

import numpy as np

from ..core.workers import Workers
from ..errors import (
    EngineClosedError,
    EngineError,
    IndexingError,
    InputError,
    ModelError,
    Qwen3EmbeddingError,
)
from ..rows import Row, RowId, Sink, Vectors

T = TypeVar("T")
Encode = Callable[[list[Row]], Vectors]  # (N, dimensions)

MAX_AHEAD = 2  # batches being encoded, and writes under way
MAX_WAIT_S = 5.0  # between two attempts


@dataclass(frozen=True)
class Host:
    """A sink that is asked again while its faults are passing ones, until told to stop."""

    sink: Sink
    retry_s: float
    stopped: Event = field(default_factory=Event)

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """Return call(). Raises IndexingError when the host fails for good."""
        import stamina

        try:
            for attempt in stamina.retry_context(
                on=lambda error: not self.stopped.is_set() and self.sink.is_passing(error),
                attempts=None if self.retry_s else 1,
                timeout=self.retry_s or None,
                wait_max=MAX_WAIT_S,
            ):
                with attempt:
                    return call()
        except Exception as error:
            is_passing = self.sink.is_passing(error)
            if isinstance(error, Qwen3EmbeddingError) and not is_passing:
                raise
            verdict = f"did not recover in {self.retry_s:.0f} s" if is_passing else "failed"
            said = " ".join(str(error).split())  # gRPC's and Qdrant's are of many lines
            raise IndexingError(
                f"{self.sink.name} {verdict} ({what}: {type(error).__name__}: {said}); what was "
                "written stays: mend it and run again"
            ) from error
        raise AssertionError("unreachable: the last attempt returns or raises")


class Batch(NamedTuple):
    """Rows to be encoded and written, and which of their ids are in the store."""

    rows: list[Row]
    stored: set[RowId]


class Encoded(NamedTuple):
    """Rows with their vectors, and those that have none."""

    rows: list[Row]
    vectors: Vectors  # (len(rows), dimensions)
    failures: list[tuple[Row, Exception]]


class Pipeline:
    """Encodes batches on two threads and writes them, in order, on a third.

    `on_written(rows, are_new)` and `on_failed(row, error)` run on the caller's thread.
    """

    def __init__(
        self,
        host: Host,
        encode: Encode,
        *,
        on_written: Callable[[list[Row], bool], None],
        on_failed: Callable[[Row, Exception], None],
    ) -> None:
        self._host = host
        self._encode = encode
        self._on_written = on_written
        self._on_failed = on_failed
        self._encoders = Workers(MAX_AHEAD, "qwen3-encode")
        self._writer = Workers(1, "qwen3-write")
        self._encoding: deque[tuple[Batch, Future[Encoded]]] = deque()
        self._writing: deque[tuple[list[Row], bool, Future[None]]] = deque()

    def put(self, batch: Batch) -> None:
        """Take a batch; wait while too many are under way."""
        if batch.rows:
            future = self._encoders.submit(lambda: encode_rows(batch.rows, self._encode))
            self._encoding.append((batch, future))
        self._advance(MAX_AHEAD)

    def drain(self) -> None:
        """Wait until everything is written."""
        self._advance(0)

    def stop(self) -> None:
        """Drop what has not begun; when this returns, nothing writes any more."""
        for *_, future in [*self._encoding, *self._writing]:
            future.cancel()
        if running := [future for *_, future in self._writing if not future.cancelled()]:
            self._host.stopped.set()
            wait(running)

    def _advance(self, max_ahead: int) -> None:
        """Hand on what is encoded until no more than so many batches are under way."""
        while len(self._encoding) > max_ahead:
            batch, encoding = self._encoding.popleft()
            encoded = encoding.result()
            for row, error in encoded.failures:
                self._on_failed(row, error)
            for are_new in (True, False):
                chosen = [(row.id not in batch.stored) == are_new for row in encoded.rows]
                if any(chosen):
                    rows = list(compress(encoded.rows, chosen))
                    self._write(rows, encoded.vectors[chosen], are_new=are_new)
            self._settle(MAX_AHEAD)
        self._settle(max_ahead)

    def _write(self, rows: list[Row], vectors: Vectors, *, are_new: bool) -> None:
        host = self._host
        future = self._writer.submit(
            lambda: host.ask("write", lambda: host.sink.write(rows, vectors, are_new=are_new))
        )
        self._writing.append((rows, are_new, future))

    def _settle(self, max_ahead: int) -> None:
        while len(self._writing) > max_ahead or (self._writing and self._writing[0][-1].done()):
            rows, are_new, writing = self._writing.popleft()
            writing.result()
            self._on_written(rows, are_new)


def encode_rows(rows: list[Row], encode: Encode) -> Encoded:
    """Encode what can be encoded."""
    failures: list[tuple[Row, Exception]] = []
    while rows:
        try:
            return Encoded(rows, encode(rows), failures)
        except InputError as error:
            if error.index is None:
                raise
            failures.append((rows[error.index], error))
            rows = rows[: error.index] + rows[error.index + 1 :]
        except EngineClosedError:
            raise
        except (EngineError, ModelError) as error:
            # One text's fault (it does not fit, or gives NaN) must not become its neighbours'.
            if len(rows) == 1:
                failures.append((rows[0], error))
                break
            middle = len(rows) // 2
            halves = [encode_rows(half, encode) for half in (rows[:middle], rows[middle:])]
            if not any(half.rows for half in halves):
                raise  # it is no text's fault
            return Encoded(
                [row for half in halves for row in half.rows],
                np.concatenate([half.vectors for half in halves if half.rows]),
                failures + [one for half in halves for one in half.failures],
            )
    return Encoded([], np.empty((0, 0), np.float32), failures)
