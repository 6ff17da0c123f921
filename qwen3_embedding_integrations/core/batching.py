"""Which texts share a forward: arithmetic on lengths only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def plan_batches(lengths: Sequence[int], max_batch_tokens: int) -> list[npt.NDArray[np.intp]]:
    """Return the rows of each batch: every row exactly once, longest texts first.

    A batch holds at most `max_batch_tokens` tokens; a longer text gets a batch of its own.
    Neighbours in length share a batch, because attention kernels launch a grid as deep as the
    longest sequence of the batch, and texts of equal length can share one attention call.
    """
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")[::-1]
    batches: list[npt.NDArray[np.intp]] = []
    start, num_tokens = 0, 0
    for end, row in enumerate(order):
        if end > start and num_tokens + lengths[row] > max_batch_tokens:
            batches.append(order[start:end])
            start, num_tokens = end, 0
        num_tokens += lengths[row]
    if start < len(order):
        batches.append(order[start:])
    return batches
