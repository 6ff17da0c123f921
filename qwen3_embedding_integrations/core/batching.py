"""Which texts share a forward: arithmetic on lengths only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .packing import Int32Array, PackedBatch

Group = tuple[Sequence[Int32Array], tuple[int, ...]]  # sequences, and the prefix before each


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


def pack_groups(
    groups: Sequence[Group], max_batch_tokens: int
) -> Iterator[tuple[PackedBatch, npt.NDArray[np.intp]]]:
    """Yield batches of one group's sequences, each with its rows among those of all groups."""
    first_row = 0
    for sequences, prefix_ids in groups:
        lengths = [len(ids) + len(prefix_ids) for ids in sequences]
        for rows in plan_batches(lengths, max_batch_tokens):
            batch = PackedBatch.pack([sequences[row] for row in rows], prefix_ids)
            yield batch, rows + first_row
        first_row += len(sequences)
