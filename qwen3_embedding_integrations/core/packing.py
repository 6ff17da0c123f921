"""PackedBatch: token sequences laid end to end, the only batch format of this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """B token sequences laid end to end, without padding.

    Sequence i is `prefix_ids` followed by `input_ids[cu_seqlens[i]:cu_seqlens[i + 1]]`. As nothing
    is padded, joining batches is concatenation and splitting one is slicing: neither needs the
    model. The prefix (an instruction's stable beginning) is the same for all sequences of a batch.
    """

    input_ids: Int32Array  # (T,)
    cu_seqlens: Int32Array  # (B + 1,): 0, then the running total of the lengths
    prefix_ids: tuple[int, ...] = ()

    @classmethod
    def pack(cls, sequences: Sequence[Int32Array], prefix_ids: tuple[int, ...] = ()) -> PackedBatch:
        """Return one batch of these sequences, in order."""
        lengths = np.array([len(ids) for ids in sequences])
        return cls(np.concatenate(sequences), _running_total(lengths), prefix_ids)

    @classmethod
    def join(cls, batches: Sequence[PackedBatch]) -> PackedBatch:
        """Return one batch of all sequences, in order; the batches must share their prefix."""
        if len(batches) == 1:
            return batches[0]
        lengths = np.concatenate([batch.lengths for batch in batches])
        input_ids = np.concatenate([batch.input_ids for batch in batches])
        return cls(input_ids, _running_total(lengths), batches[0].prefix_ids)

    def split(self) -> tuple[PackedBatch, PackedBatch]:
        """Return the two halves nearest in tokens; a batch of one sequence has none."""
        middle = 1 + int(np.abs(self.cu_seqlens[1:-1] - self.num_tokens / 2).argmin())
        cut = self.cu_seqlens[middle]
        left = PackedBatch(self.input_ids[:cut], self.cu_seqlens[: middle + 1], self.prefix_ids)
        right = PackedBatch(self.input_ids[cut:], self.cu_seqlens[middle:] - cut, self.prefix_ids)
        return left, right

    def select(self, rows: npt.NDArray[np.intp]) -> PackedBatch:
        """Return a batch of these sequences, in the order given."""
        bounds = [self.cu_seqlens[row : row + 2] for row in rows]
        return PackedBatch.pack([self.input_ids[a:b] for a, b in bounds], self.prefix_ids)

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model: the prefix, computed once, does not count."""
        return int(self.cu_seqlens[-1])

    @property
    def num_keys(self) -> int:
        """Rows that attention reads: the prefix counts once for every text. What budgets count."""
        return self.num_tokens + len(self) * len(self.prefix_ids)

    @property
    def lengths(self) -> Int32Array:
        """Tokens of each sequence, (B,), without the prefix."""
        return np.diff(self.cu_seqlens)

    @property
    def position_ids(self) -> npt.NDArray[np.int64]:
        """Where each token stands in its text, (T,): counted from the end of the prefix."""
        starts = np.repeat(self.cu_seqlens[:-1], self.lengths)
        return np.arange(self.num_tokens) - starts + len(self.prefix_ids)


def _running_total(lengths: npt.NDArray[np.integer]) -> Int32Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
