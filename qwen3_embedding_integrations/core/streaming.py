"""An iterable in parts, and in windows: two under way while the caller uses a third."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .config import check_range

Vectors = npt.NDArray[np.float32]
J = TypeVar("J")
T = TypeVar("T")

WINDOW = 512  # texts of one window of a stream
MAX_WINDOW_CHARS = 1_000_000


def divide(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of so many, the last one perhaps shorter."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def stream_windows(
    documents: Iterable[str],
    window: int,
    *,
    submit: Callable[[list[str], int], J],
    result: Callable[[J], Vectors],
    cancel: Callable[[J], object],
) -> Iterator[Vectors]:
    """Yield the vectors of any iterable, window by window, each (up to `window`, W).

    `submit(texts, first_index)` begins a job, `result(job)` waits for it. A failure of `submit` is
    raised after the windows before it were yielded.
    """
    check_range("window", window, 1, 1_000_000)
    if isinstance(documents, str):
        raise TypeError("documents is a str; pass an iterable of str: [document]")
    return _stream(_windows(documents, window), submit, result, cancel)


def _stream(
    windows: Iterator[list[str]],
    submit: Callable[[list[str], int], J],
    result: Callable[[J], Vectors],
    cancel: Callable[[J], object],
) -> Iterator[Vectors]:
    jobs: deque[J] = deque()
    first_index, failure = 0, None
    try:
        while failure is None:
            try:
                documents = next(windows)
                jobs.append(submit(documents, first_index))
            except StopIteration:
                break
            except Exception as error:  # raised below, when all before it is delivered
                failure = error
            else:
                first_index += len(documents)
                if len(jobs) > 1:
                    yield result(jobs.popleft())
        while jobs:
            yield result(jobs.popleft())
    finally:
        for job in jobs:
            cancel(job)
    if failure is not None:
        raise failure


def _windows(documents: Iterable[str], window: int) -> Iterator[list[str]]:
    """Yield lists of at most `window` documents and about a million characters."""
    batch: list[str] = []
    num_chars = 0
    for document in documents:
        batch.append(document)
        num_chars += len(document) if isinstance(document, str) else 0
        if len(batch) == window or num_chars >= MAX_WINDOW_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch
