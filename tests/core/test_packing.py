"""The packed batch: joined and split without loss."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen3_embedding_integrations.core.packing import PackedBatch

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40)
PREFIXES = st.lists(st.integers(0, 999), max_size=6).map(tuple)


def pack(lengths, prefix_ids=()):
    # Different numbers in every text, or swapped texts would look alike.
    return PackedBatch.pack(
        [np.arange(n, dtype=np.int32) + 1000 * i for i, n in enumerate(lengths)], prefix_ids
    )


def assert_same(one: PackedBatch, other: PackedBatch) -> None:
    np.testing.assert_array_equal(one.input_ids, other.input_ids)
    np.testing.assert_array_equal(one.cu_seqlens, other.cu_seqlens)
    assert one.prefix_ids == other.prefix_ids
    assert one.input_ids.dtype == one.cu_seqlens.dtype == np.int32


@given(LENGTHS.filter(lambda lengths: len(lengths) > 1), PREFIXES)
def test_joining_the_halves_gives_the_batch_back(lengths, prefix_ids):
    """split() loses nothing and reorders nothing, and neither half is empty."""
    batch = pack(lengths, prefix_ids)
    left, right = batch.split()
    assert len(left) > 0
    assert len(right) > 0
    assert_same(PackedBatch.join([left, right]), batch)


@given(LENGTHS.filter(lambda lengths: len(lengths) > 1))
def test_the_halves_are_the_nearest_in_tokens(lengths):
    """No other cut between two texts would divide the tokens more evenly."""
    left, right = pack(lengths).split()
    best = min(abs(sum(lengths[:i]) - sum(lengths[i:])) for i in range(1, len(lengths)))
    difference = abs(left.num_tokens - right.num_tokens)
    assert difference == best, f"halves differ by {difference} tokens, {best} was possible"


@given(st.lists(LENGTHS, min_size=1, max_size=6), PREFIXES)
def test_joining_is_packing_all_texts_together(groups, prefix_ids):
    """A merged batch is the batch that one call with all texts would have made."""
    sequences = [
        [np.arange(n, dtype=np.int32) + 1000 * (i + 50 * g) for i, n in enumerate(lengths)]
        for g, lengths in enumerate(groups)
    ]
    joined = PackedBatch.join([PackedBatch.pack(group, prefix_ids) for group in sequences])
    assert_same(joined, PackedBatch.pack([ids for group in sequences for ids in group], prefix_ids))


@given(LENGTHS, PREFIXES)
def test_positions_restart_with_every_text_behind_the_prefix(lengths, prefix_ids):
    """Each text's own tokens stand at P, P + 1, …, wherever they lie in the batch."""
    expected = np.concatenate([np.arange(n) + len(prefix_ids) for n in lengths])
    np.testing.assert_array_equal(pack(lengths, prefix_ids).position_ids, expected)


@given(LENGTHS, PREFIXES)
def test_counts_are_those_of_the_texts(lengths, prefix_ids):
    """num_tokens counts a shared prefix not at all, num_keys once for every text."""
    batch = pack(lengths, prefix_ids)
    assert len(batch) == len(lengths)
    assert batch.lengths.tolist() == lengths
    assert batch.num_tokens == sum(lengths)
    assert batch.num_keys == sum(lengths) + len(lengths) * len(prefix_ids)
