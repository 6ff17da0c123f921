"""Where everything lies in a forward: index arithmetic of a batch as it is, or padded to a bucket.

Numbers only, no device: a forward reads nothing of its batch but these words. A CUDA graph replays
one forward of fixed shape for every batch that fits its bucket, so the bucket's surplus must be
harmless: surplus tokens stand in texts of their own, surplus texts are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from .packing import PackedBatch

Int64Array = npt.NDArray[np.int64]
Part = TypeVar("Part")

TOKEN_BUCKETS = (
    16,
    32,
    64,
    128,
    256,
    512,
    1024,
    2048,
)  # above, launching costs less than computing
LENGTH_LEVELS = (128, 512, 2048)  # how long a bucket's longest text may be
PREFIX_STEP = 8  # prefixes are rounded up to a multiple of it, to share graphs
MIN_TEXTS = 16  # texts of a bucket at least: nearly free, a small forward only reads the weights
MAX_KEY_ROWS = 12_288  # of a bucket: each text copies the prefix's keys in each layer


class Shape(NamedTuple):
    """How many of each: what fixes the length of every part of the words."""

    num_tokens: int  # T
    num_texts: int  # B
    num_keys: int  # rows of `key_rows`: T + B P, or 0 without a prefix

    def split(self, words: Sequence[Part] | Part) -> list[Part]:
        """Return the words (a tensor or an array) as the parts that `Layout.words` joins."""
        tokens, texts = self.num_tokens, self.num_texts
        parts: list[Part] = []
        start = 0
        for length in (tokens, tokens, texts + 1, texts + 1, texts + 1, texts, self.num_keys):
            parts.append(words[start : start + length])  # pyright: ignore
            start += length
        return parts

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


@dataclass(frozen=True, slots=True)
class Layout:
    """One forward's batch as index arrays on the host, all int64."""

    input_ids: Int64Array  # (T,)
    position_ids: Int64Array  # (T,) counted from the end of the prefix
    cu_q: Int64Array  # (B + 1,)
    cu_k: Int64Array  # (B + 1,)
    cu_last: Int64Array  # (B + 1,): one query per text, for the last layer
    last_rows: Int64Array  # (B,) each text's last token
    key_rows: Int64Array  # (T + B P,) of prefix and own keys end to end, or (0,) without a prefix

    @property
    def shape(self) -> Shape:
        """The length of every part."""
        return Shape(len(self.input_ids), len(self.last_rows), len(self.key_rows))

    @property
    def words(self) -> Int64Array:
        """All parts end to end: one copy to the device for all of them."""
        parts = (self.input_ids, self.position_ids, self.cu_q, self.cu_k, self.cu_last)
        return np.concatenate([*parts, self.last_rows, self.key_rows])


def lay_out(batch: PackedBatch) -> Layout:
    """Return the layout of a batch as it is."""
    num_prefix, num_texts = len(batch.prefix_ids), len(batch)
    cu_q = batch.cu_seqlens.astype(np.int64)
    ones = np.arange(num_texts + 1)
    return Layout(
        input_ids=batch.input_ids.astype(np.int64),
        position_ids=batch.position_ids,
        cu_q=cu_q,
        cu_k=cu_q + num_prefix * ones,
        cu_last=ones,
        last_rows=cu_q[1:] - 1,
        key_rows=_key_rows(cu_q, num_prefix, num_prefix),
    )


def pad_out(batch: PackedBatch, bucket: Bucket) -> Layout:
    """Return the layout of a batch that fits the bucket, padded to the bucket's shape.

    Texts keep their places at the front. What tokens are left over stand in texts of their own
    (any text is computed for itself alone), and the texts left over are empty: attention has no
    rows for them, and what the last layer makes of them is not read.
    """
    num_prefix, num_texts = len(batch.prefix_ids), len(batch)
    fillers = _fillers(bucket.num_tokens - batch.num_tokens, bucket.longest)
    lengths = np.zeros(bucket.num_texts, np.int64)
    lengths[:num_texts] = batch.lengths
    lengths[num_texts : num_texts + len(fillers)] = fillers
    cu_q = np.concatenate([[0], np.cumsum(lengths)])
    input_ids, position_ids = np.zeros((2, bucket.num_tokens), np.int64)
    input_ids[: batch.num_tokens] = batch.input_ids
    position_ids[: batch.num_tokens] = batch.position_ids
    key_rows = np.zeros(bucket.shape.num_keys, np.int64)  # those beyond are not read
    used = _key_rows(cu_q, num_prefix, bucket.prefix_rows)
    key_rows[: len(used)] = used
    ones = np.arange(bucket.num_texts + 1)
    return Layout(
        input_ids=input_ids,
        position_ids=position_ids,
        cu_q=cu_q,
        cu_k=cu_q + num_prefix * ones,
        cu_last=ones,
        last_rows=np.maximum(cu_q[1:] - 1, 0),
        key_rows=key_rows,
    )


def choose_bucket(batch: PackedBatch) -> Bucket | None:
    """Return the smallest bucket the batch fits, or None where it must run as it is."""
    num_prefix, num_texts = len(batch.prefix_ids), len(batch)
    prefix_rows = -(-num_prefix // PREFIX_STEP) * PREFIX_STEP
    if batch.num_tokens > TOKEN_BUCKETS[-1]:
        return None
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


def _key_rows(cu_q: Int64Array, num_prefix: int, prefix_rows: int) -> Int64Array:
    """Return, for each text's prefix and own tokens in order, its row among all keys.

    All keys are the prefix's, in room for `prefix_rows`, and every token's own behind them.
    """
    if num_prefix == 0:
        return np.zeros(0, np.int64)
    num_tokens, num_texts = int(cu_q[-1]), len(cu_q) - 1
    text = np.repeat(np.arange(num_texts), np.diff(cu_q))  # (T,) the text each token belongs to
    rows = np.empty(num_tokens + num_texts * num_prefix, np.int64)
    first = cu_q[:-1] + num_prefix * np.arange(num_texts)  # where each text's keys begin
    rows[(first[:, None] + np.arange(num_prefix)).ravel()] = np.tile(
        np.arange(num_prefix), num_texts
    )
    rows[np.arange(num_tokens) + num_prefix * (text + 1)] = np.arange(num_tokens) + prefix_rows
    return rows
