"""Where everything lies in a forward: index arithmetic of a batch as it is, or padded to a bucket.

Numbers only, no device: a forward reads nothing of its batch but these words. A CUDA graph replays
one forward of fixed shape for every batch that fits its bucket, so the bucket's surplus must be
harmless: surplus tokens stand in texts of their own, surplus texts are empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from .packing import PackedBatch

Int64Array = npt.NDArray[np.int64]
Part = TypeVar("Part")

# Above the largest, launching costs less than computing.
TOKEN_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048)
LENGTH_LEVELS = (128, 512, 2048)  # how long a bucket's longest text may be
# Room for prefixes; each has memory of its own, the largest as many tokens as a prefix is kept of.
PREFIX_ROOMS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MIN_TEXTS = 16  # texts of a bucket at least: nearly free, a small forward only reads the weights
MAX_KEY_ROWS = 12_288  # of a bucket: each text copies the prefix's keys in each layer


class Parts(NamedTuple, Generic[Part]):
    """What a forward reads of its batch, arrays on the host or tensors on the device, int64."""

    input_ids: Part  # (T,)
    position_ids: Part  # (T,) counted from the end of the prefix
    cu_q: Part  # (B + 1,)
    cu_k: Part  # (B + 1,)
    cu_last: Part  # (B + 1,): one query per text, for the last layer
    last_rows: Part  # (B,) each text's last token
    key_rows: Part  # (T + B P,) of prefix and own keys end to end, or (0,) without a prefix


class Shape(NamedTuple):
    """How many of each: what fixes the length of every part."""

    num_tokens: int  # T
    num_texts: int  # B
    num_keys: int  # T + B P, or 0 without a prefix

    def split(self, words: Part) -> Parts[Part]:
        """Return the words (an array or a tensor) as their parts, which are views."""
        tokens, texts = self.num_tokens, self.num_texts
        bounds = accumulate((0, tokens, tokens, texts + 1, texts + 1, texts + 1, texts))
        sliceable: Any = words
        starts = [*bounds, self.num_words]
        return Parts(*(sliceable[start:stop] for start, stop in pairwise(starts)))

    @property
    def num_words(self) -> int:
        """The length of all parts together."""
        return 2 * self.num_tokens + 4 * self.num_texts + 3 + self.num_keys


@dataclass(frozen=True, slots=True)
class Bucket:
    """The fixed shape of one graph, and what fits it."""

    num_tokens: int
    num_texts: int
    longest: int  # tokens of a text at most, without the prefix
    prefix_rows: int  # room for the prefix's keys, 0 where there is none

    @property
    def shape(self) -> Shape:
        """The length of every part."""
        num_keys = self.num_tokens + self.num_texts * self.prefix_rows if self.prefix_rows else 0
        return Shape(self.num_tokens, self.num_texts, num_keys)


class Layout(NamedTuple):
    """One forward's batch: all parts end to end, so that one copy takes them to the device."""

    words: Int64Array
    shape: Shape

    @property
    def parts(self) -> Parts[Int64Array]:
        """The parts, as views."""
        return self.shape.split(self.words)


def lay_out(batch: PackedBatch) -> Layout:
    """Return the layout of a batch as it is."""
    num_keys = batch.num_keys if batch.prefix_ids else 0
    layout = _empty(Shape(batch.num_tokens, len(batch), num_keys))
    _fill(layout.parts, batch, batch.cu_seqlens, len(batch.prefix_ids))
    return layout


def pad_out(batch: PackedBatch, bucket: Bucket) -> Layout:
    """Return the layout of a batch that fits the bucket, padded to the bucket's shape.

    Texts keep their places at the front. What tokens are left over stand in texts of their own
    (any text is computed for itself alone), and the texts left over are empty: attention has no
    rows for them, and what the last layer makes of them is not read.
    """
    layout = _empty(bucket.shape)
    fillers = _fillers(bucket.num_tokens - batch.num_tokens, bucket.longest)
    starts = np.full(bucket.num_texts + 1, bucket.num_tokens, np.int64)
    starts[: len(batch) + 1] = batch.cu_seqlens
    starts[len(batch) + 1 : len(batch) + 1 + len(fillers)] = batch.num_tokens + np.cumsum(fillers)
    _fill(layout.parts, batch, starts, bucket.prefix_rows)
    return layout


def _empty(shape: Shape) -> Layout:
    return Layout(np.zeros(shape.num_words, np.int64), shape)


def _fill(
    parts: Parts[Int64Array], batch: PackedBatch, starts: npt.NDArray[np.integer], prefix_rows: int
) -> None:
    """Write a batch whose texts, and those that pad it, begin at `starts` (B + 1,).

    All keys are the prefix's, in room for `prefix_rows`, and every token's own behind them.
    """
    num_prefix, num_tokens = len(batch.prefix_ids), len(parts.input_ids)
    parts.input_ids[: batch.num_tokens] = batch.input_ids
    parts.position_ids[: batch.num_tokens] = batch.position_ids
    parts.cu_q[:] = starts
    parts.cu_last[:] = ones = np.arange(len(starts))
    parts.cu_k[:] = first = starts + num_prefix * ones
    np.maximum(starts[1:] - 1, 0, out=parts.last_rows)
    if num_prefix:
        of_prefix = np.arange(num_prefix)
        parts.key_rows[first[:-1, None] + of_prefix] = of_prefix
        text = ones[:-1].repeat(np.diff(starts))  # (T,) the text each token belongs to
        tokens = np.arange(num_tokens)
        parts.key_rows[tokens + num_prefix * (text + 1)] = tokens + prefix_rows


def choose_bucket(batch: PackedBatch) -> Bucket | None:
    """Return the smallest bucket the batch fits, or None where it must run as it is."""
    num_prefix, num_texts = len(batch.prefix_ids), len(batch)
    if batch.num_tokens > TOKEN_BUCKETS[-1] or num_prefix > PREFIX_ROOMS[-1]:
        return None
    prefix_rows = next(room for room in (0, *PREFIX_ROOMS) if room >= num_prefix)
    longest = int(batch.lengths.max())
    level = next(level for level in LENGTH_LEVELS if level >= longest)
    for num_tokens in TOKEN_BUCKETS:
        if num_tokens < batch.num_tokens:
            continue
        # As many texts as keep attention's grid, texts x blocks of the longest, in proportion.
        most = min(level, num_tokens)
        slots = max(MIN_TEXTS, MIN_TEXTS * num_tokens // most)
        bucket = Bucket(num_tokens, slots, most, prefix_rows)
        num_fillers = len(_fillers(num_tokens - batch.num_tokens, most))
        if num_texts + num_fillers <= slots:
            return bucket if num_tokens + slots * prefix_rows <= MAX_KEY_ROWS else None
    return None


def _fillers(num_tokens: int, longest: int) -> list[int]:
    """Return the lengths of the texts that surplus tokens make."""
    whole, rest = divmod(num_tokens, longest)
    return [longest] * whole + [rest] * (rest > 0)
