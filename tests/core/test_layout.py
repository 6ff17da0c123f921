"""Index arithmetic of a forward: as it is, and padded to a bucket, against text by text."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen3_embedding_integrations.core.layout import (
    LENGTH_LEVELS,
    MAX_KEY_ROWS,
    TOKEN_BUCKETS,
    Parts,
    Shape,
    choose_bucket,
    lay_out,
    pad_out,
)
from qwen3_embedding_integrations.core.packing import PackedBatch

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
PREFIXES = st.integers(0, 40)


def batch_of(lengths: list[int], num_prefix: int = 0) -> PackedBatch:
    """Return texts whose ids are all different, behind a prefix of others."""
    ids = np.arange(sum(lengths), dtype=np.int32) + 1000
    texts = np.split(ids, np.cumsum(lengths)[:-1])
    return PackedBatch.pack(texts, tuple(range(1, num_prefix + 1)))


def keys_of_texts(layout: Parts, num_prefix: int, prefix_rows: int) -> list[list[int]]:
    """Return the ids of the keys that each text sees, read the way a forward reads them."""
    all_keys = [*range(1, num_prefix + 1), *[0] * (prefix_rows - num_prefix), *layout.input_ids]
    rows = layout.key_rows if prefix_rows else range(len(layout.input_ids))
    joined = [int(all_keys[row]) for row in rows]
    bounds = zip(layout.cu_k[:-1], layout.cu_k[1:], strict=True)
    return [joined[start:stop] for start, stop in bounds]


def assert_reads(layout: Parts, batch: PackedBatch, prefix_rows: int) -> None:
    """Assert that the layout's first texts are the batch's: ids, positions, keys, last tokens."""
    prefix = list(batch.prefix_ids)
    keys = keys_of_texts(layout, len(prefix), prefix_rows)
    for i, text in enumerate(np.split(batch.input_ids, batch.cu_seqlens[1:-1])):
        own = slice(int(layout.cu_q[i]), int(layout.cu_q[i + 1]))
        positions = layout.position_ids[own].tolist()
        assert layout.input_ids[own].tolist() == text.tolist(), f"text {i}"
        assert positions == [len(prefix) + j for j in range(len(text))], f"text {i}"
        assert keys[i] == prefix + text.tolist(), f"text {i}"
        assert layout.last_rows[i] == own.stop - 1, f"text {i}"


@given(LENGTHS, PREFIXES)
def test_a_layout_reads_each_text_behind_the_prefix(lengths, num_prefix):
    """As it is, every text's tokens, positions, keys and last token are its own."""
    batch = batch_of(lengths, num_prefix)
    layout = lay_out(batch).parts
    assert_reads(layout, batch, num_prefix)
    assert layout.cu_q[-1] == batch.num_tokens
    assert layout.cu_k[-1] == batch.num_keys


@given(LENGTHS, PREFIXES)
def test_a_padded_layout_reads_the_same_texts(lengths, num_prefix):
    """Padded to its bucket, the batch's texts are read as they were, at the front."""
    batch = batch_of(lengths, num_prefix)
    bucket = choose_bucket(batch)
    if bucket is None:
        return
    assert_reads(pad_out(batch, bucket).parts, batch, bucket.prefix_rows)


@given(LENGTHS, PREFIXES)
def test_padding_has_the_buckets_shape_and_stays_inside(lengths, num_prefix):
    """Every array has the bucket's length, every row exists, no text is longer than the graph's."""
    batch = batch_of(lengths, num_prefix)
    bucket = choose_bucket(batch)
    if bucket is None:
        return
    padded = pad_out(batch, bucket)
    assert padded.shape == bucket.shape
    assert len(padded.words) == bucket.shape.num_words
    layout = padded.parts
    assert layout.cu_q[-1] == bucket.num_tokens, "a token belongs to no text"
    lengths_q, lengths_k = np.diff(layout.cu_q), np.diff(layout.cu_k)
    assert lengths_q.min() >= 0
    assert lengths_q.max() <= bucket.longest
    assert (lengths_k == lengths_q + num_prefix).all()
    assert layout.cu_k[-1] <= max(bucket.shape.num_keys, bucket.num_tokens)
    for rows, stop in ((layout.last_rows, bucket.num_tokens), (layout.key_rows, None)):
        assert (rows >= 0).all()
        assert (rows < (stop or bucket.num_tokens + bucket.prefix_rows)).all()


@given(LENGTHS, PREFIXES)
def test_words_are_their_parts_end_to_end(lengths, num_prefix):
    """What is copied at once comes apart again into the parts it was joined from."""
    batch = batch_of(lengths, num_prefix)
    layout = lay_out(batch)
    assert np.concatenate(layout.parts).tolist() == layout.words.tolist()
    assert layout.shape.num_words == len(layout.words)
    assert layout.parts.cu_last.tolist() == list(range(len(batch) + 1))
    sizes = [len(part) for part in layout.parts]
    texts = len(batch)
    num_keys = batch.num_keys if num_prefix else 0
    assert sizes == [*[batch.num_tokens] * 2, *[texts + 1] * 3, texts, num_keys]


@given(st.lists(st.integers(1, 2100), min_size=1, max_size=300), st.integers(0, 520))
def test_a_bucket_is_the_smallest_that_fits(lengths, num_prefix):
    """A bucket has room for the batch; only many texts make it larger than their tokens need."""
    batch = batch_of(lengths, num_prefix)
    bucket = choose_bucket(batch)
    if bucket is None:
        return
    assert bucket.num_tokens in TOKEN_BUCKETS
    assert bucket.num_tokens >= batch.num_tokens
    assert bucket.num_texts >= len(batch)
    assert max(lengths) <= bucket.longest <= max(LENGTH_LEVELS)
    assert num_prefix <= bucket.prefix_rows <= max(8 * (num_prefix > 0), 1.6 * num_prefix)
    assert bucket.shape.num_keys <= MAX_KEY_ROWS
    smaller = [size for size in TOKEN_BUCKETS if batch.num_tokens <= size < bucket.num_tokens]
    assert not smaller or len(batch) > 8, "a smaller bucket was passed over"


def test_a_query_takes_the_smallest_bucket():
    """A query of eight tokens behind the default instruction's 18 runs as 16 tokens."""
    bucket = choose_bucket(batch_of([8], 18))
    assert bucket is not None
    assert (bucket.num_tokens, bucket.longest, bucket.prefix_rows) == (16, 16, 24)


def test_buckets_are_shared():
    """All batches of queries that are likely need no more than a few dozen graphs."""
    rng = np.random.default_rng(0)
    buckets = set()
    for _ in range(2000):
        num_texts = int(rng.integers(1, 200))
        lengths = np.clip(np.exp(rng.normal(np.log(9), 0.4, num_texts)), 3, 64).astype(int)
        buckets.add(choose_bucket(batch_of(lengths.tolist(), 18)))
    assert None not in buckets, "queries ran without a graph"
    assert len(buckets) <= len(TOKEN_BUCKETS)


def test_what_is_too_large_runs_as_it_is():
    """More tokens than the largest bucket, or more copies of a prefix than pay: no bucket."""
    assert choose_bucket(batch_of([2049])) is None
    assert choose_bucket(batch_of([300] * 7)) is None
    assert choose_bucket(batch_of([2048])) is not None
    assert choose_bucket(batch_of([5] * 200, 512)) is None
    assert choose_bucket(batch_of([5], 512)) is not None
    assert choose_bucket(batch_of([5], 513)) is None


def test_an_empty_shape_has_its_sentinels():
    """A shape counts the one word more that running totals have than texts."""
    assert Shape(3, 2, 0).num_words == 3 + 3 + 3 * 3 + 2
