"""Graphs: what a replay computes, against the model without graphs and transformers' Qwen3Model.

A CUDA graph repeats the operations of one forward at the same addresses. Where there is no CUDA, a
tape does the same: it notes every operation of torch while a forward runs, and plays them again.
What a forward read of its batch on the host would be frozen on both.
"""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.core.attention import CAPTURABLE, Segments, behind_prefix
from qwen3_embedding_integrations.core.graphs import MAX_GRAPHS
from qwen3_embedding_integrations.core.heads import (
    Head,
    embedding_head,
    reranking_head,
    unit_vectors,
)
from qwen3_embedding_integrations.core.layout import PREFIX_ROOMS, choose_bucket
from qwen3_embedding_integrations.core.model import Plan, Qwen3Model, Texts
from qwen3_embedding_integrations.core.packing import PackedBatch
from qwen3_embedding_integrations.core.weights import Layer, Weights
from tests.checkpoints import SHAPE_SMALL, write_checkpoint
from tests.core.test_model import native_model
from tests.oracle import largest_difference, vectors_of_ids

ATOL = 2e-5  # on unit vectors, float32
CPU = torch.device("cpu")
MINI = SHAPE_SMALL | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}


class Tape(TorchDispatchMode):
    """Notes operations as they run, and plays them again into the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.notes.append((func, args, kwargs, out))
        return out

    def play(self) -> None:
        for func, args, kwargs, out in self.notes:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeCapture:
    """Captures a forward on a tape, as CudaCapture does in a graph."""

    def __init__(self) -> None:
        self.num_replays = 0

    def __call__(self, forward: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        with Tape() as tape:
            output = forward()

        def replay() -> torch.Tensor:
            self.num_replays += 1
            tape.play()
            return output

        return replay


def device_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """Attend as the packed CUDA operators do: by what is on the device, and by the two maxima.

    Queries of no text, or beyond the maximum, are not a number: an operator leaves them unwritten.
    """
    rows, columns = torch.arange(len(q)), torch.arange(len(k))
    q_text = torch.bucketize(rows, segments.cu_q[1:].long(), right=True)
    k_text = torch.bucketize(columns, segments.cu_k[1:].long(), right=True)
    last = len(segments.cu_q) - 2
    q_of, k_of = q_text.clamp(max=last), k_text.clamp(max=last)
    q_place, k_place = rows - segments.cu_q[q_of], columns - segments.cu_k[k_of]
    q_length = segments.cu_q[1:] - segments.cu_q[:-1]
    k_length = segments.cu_k[1:] - segments.cu_k[:-1]
    sees = k_place[None] <= (q_place + (k_length - q_length)[q_of])[:, None]
    sees &= (q_text[:, None] == k_text[None]) & (q_text <= last)[:, None]
    sees &= (q_place < segments.max_q)[:, None] & (k_place < segments.max_k)[None]
    groups = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))
    scores = q.transpose(0, 1) @ keys.mT * q.shape[-1] ** -0.5  # (Hq, Tq, Tk)
    weights = scores.masked_fill(~sees, float("-inf")).softmax(-1)
    # 0 · NaN is NaN, which a kernel that skips a key does not compute.
    out = weights @ values.masked_fill(~values.isfinite(), 0)
    return out.transpose(0, 1).contiguous()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("graphs") / "checkpoint", MINI)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Qwen3Model:
    return native_model(folder, torch.float32)


def graphed(plain: Qwen3Model) -> tuple[Head, TapeCapture]:
    """Return a head over the same weights whose forwards run by tape."""
    model = Qwen3Model(
        plain._weights,
        plain.architecture,
        attention=behind_prefix(device_attention),
        dense=plain._dense,
        device=CPU,
        dtype=torch.float32,
    )
    capture = TapeCapture()
    return embedding_head(model, capture), capture


def random_batch(rng: random.Random, num_texts: int, longest: int, prefix=()) -> PackedBatch:
    ids = [
        np.array([rng.randrange(2000) for _ in range(rng.randint(1, longest))], np.int32)
        for _ in range(num_texts)
    ]
    return PackedBatch.pack(ids, tuple(prefix))


def texts_of(batch: PackedBatch) -> list[list[int]]:
    rows = np.split(batch.input_ids, batch.cu_seqlens[1:-1])
    return [[*batch.prefix_ids, *row.tolist()] for row in rows]


def assert_same(ours: np.ndarray, expected: np.ndarray, what: str) -> None:
    difference = largest_difference(ours, expected)
    assert difference <= ATOL, f"{what}: max difference {difference:.2e}, allowed {ATOL:.0e}"


BATCHES = {
    "one token": (1, 1, ()),
    "one query": (1, 12, ()),
    "one query behind an instruction": (1, 12, range(5, 23)),
    "some queries": (9, 12, range(5, 23)),
    "as many as there is room for": (16, 1, (7,)),
    "documents": (5, 40, ()),
    "long and short": (3, 150, range(30)),
}


@pytest.mark.parametrize(("num_texts", "longest", "prefix"), BATCHES.values(), ids=BATCHES)
def test_a_replay_equals_the_model_and_transformers(folder, plain, num_texts, longest, prefix):
    """The first and later batches of a bucket get the model's vectors, and Qwen3Model's."""
    rng = random.Random(3)
    head, capture = graphed(plain)
    for attempt in range(4):
        batch = random_batch(rng, num_texts, longest, prefix)
        vectors = head(batch)()
        assert_same(vectors, embedding_head(plain)(batch)(), f"attempt {attempt}")
        if attempt % 3 == 0:
            assert_same(vectors, vectors_of_ids(folder, texts_of(batch)), "Qwen3Model")
    assert capture.num_replays == 4


def test_a_reranker_runs_by_graph_too(plain):
    """The scores of a replay are those of a forward, whatever prefix a query has."""
    rng = random.Random(9)
    answers = torch.randn(2, MINI["hidden_size"], generator=torch.Generator().manual_seed(9))
    head, capture = graphed(plain)
    scored = reranking_head(head._model, answers, capture)
    for prefix in ((), range(40), range(5, 50), range(40)):
        batch = random_batch(rng, 4, 20, prefix)
        scores = scored(batch)()
        assert scores.shape == (4, 1)
        assert scores.std() > 1e-3
        assert_same(scores, reranking_head(plain, answers)(batch)(), f"{len(prefix)} tokens before")
    assert capture.num_replays == 4


def test_one_graph_serves_batches_of_other_lengths(plain):
    """Batches that share a bucket share its graph, whatever their texts, and keep their rows."""
    rng = random.Random(4)
    head, capture = graphed(plain)
    buckets = set()
    for _ in range(30):
        batch = random_batch(rng, rng.randint(1, 10), 12)
        buckets.add(choose_bucket(batch))
        assert_same(head(batch)(), embedding_head(plain)(batch)(), f"{batch.lengths}")
    assert head.graphs is not None
    assert head.graphs.num_captured == len(buckets) < 8
    assert capture.num_replays == 30


def test_a_graph_reads_the_prefix_of_its_batch(plain):
    """Instructions that take turns in one graph each get their own keys and values.

    Of different lengths as well, and when an instruction comes back after others.
    """
    rng = random.Random(5)
    head, _ = graphed(plain)
    prefixes = [tuple(range(10 * i, 10 * i + length)) for i, length in enumerate((18, 18, 20, 24))]
    for turn in (0, 1, 0, 2, 2, 3, 1, 0, 3, 2):
        batch = random_batch(rng, 2, 6, prefixes[turn])
        assert_same(head(batch)(), embedding_head(plain)(batch)(), f"instruction {turn}")
    assert head.graphs is not None
    assert head.graphs.num_captured == 1, "they did not share a graph, so this proves little"


def test_more_instructions_than_are_kept(plain):
    """An instruction dropped from the model's store is computed anew and read by the graph."""
    head, _ = graphed(plain)
    for turn in [*range(40), *range(40)]:
        batch = PackedBatch.pack([np.array([1, 2, 3], np.int32)], tuple(range(turn, turn + 18)))
        assert_same(head(batch)(), embedding_head(plain)(batch)(), f"instruction {turn}")


def test_what_an_earlier_batch_left_does_not_reach_the_next(plain):
    """After a full batch of a bucket, one text alone gets the vector it has in a fresh graph."""
    rng = random.Random(6)
    head, _ = graphed(plain)
    for prefix in ((), tuple(range(18))):
        full = random_batch(rng, 16, 4, prefix)
        alone = random_batch(rng, 1, 30, prefix)
        head(full)()
        after = head(alone)()
        fresh, _ = graphed(plain)
        assert (after == fresh(alone)()).all()
        assert_same(after, embedding_head(plain)(alone)(), "alone")


def test_no_row_of_a_bucket_is_computed_from_nothing(plain):
    """Surplus tokens stand in texts of their own: what a graph computes holds no NaN anywhere.

    Behind a prefix; without one the unused texts of the last layer have no key, and are not read.
    """
    head, _ = graphed(plain)
    assert head.graphs is not None
    seen: list[torch.Tensor] = []
    inner = head.graphs._head
    head.graphs._head = lambda hidden: seen.append(hidden) or inner(hidden)
    batch = PackedBatch.pack([np.array([1, 2, 3], np.int32)], tuple(range(18)))
    head(batch)()
    assert len(seen[0]) == 16
    assert seen[0].isfinite().all()


def test_two_results_do_not_share_memory(plain):
    """A result waited for after the next launch is still its own: replays reuse one tensor."""
    rng = random.Random(7)
    head, _ = graphed(plain)
    batches = [random_batch(rng, 2, 6) for _ in range(3)]
    waits = [head(batch) for batch in batches]
    for wait, batch in zip(waits, batches, strict=True):
        assert_same(wait(), embedding_head(plain)(batch)(), "in flight together")


def test_a_batch_beyond_the_largest_bucket_runs_without_a_graph(plain):
    """More tokens than any bucket holds are run as they are, with the same result."""
    rng = random.Random(8)
    head = embedding_head(plain, TapeCapture())
    batch = random_batch(rng, 40, 120)
    assert batch.num_tokens > 2048
    assert_same(head(batch)(), embedding_head(plain)(batch)(), "eager")
    assert head.graphs is not None
    assert head.graphs.num_captured == 0


def test_a_failed_capture_switches_graphs_off(plain, caplog):
    """Where a device cannot capture, batches run without graphs, and the log says so once."""

    def refuse(forward: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    head = embedding_head(plain, refuse)
    rng = random.Random(9)
    with caplog.at_level(logging.WARNING):
        for num_texts in (1, 4, 9):
            batch = random_batch(rng, num_texts, 12)
            assert_same(head(batch)(), embedding_head(plain)(batch)(), "eager")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "not permitted when stream is capturing" in warnings[0]


def test_the_number_of_graphs_is_limited(plain):
    """However many shapes occur, MAX_GRAPHS are kept; a dropped one is captured again."""
    head = embedding_head(plain, lambda forward: forward)  # captures nothing, so is quick
    assert head.graphs is not None
    shapes = list(itertools.product((1, 20, 40, 100, 200, 300), PREFIX_ROOMS))
    for length, num_prefix in shapes:
        batch = PackedBatch.pack([np.arange(length, dtype=np.int32)], tuple(range(num_prefix)))
        assert choose_bucket(batch) is not None
        head.graphs(batch)
    assert head.graphs.num_captured == len(shapes) > MAX_GRAPHS
    assert len(head.graphs._graphs) == MAX_GRAPHS


@pytest.mark.parametrize("attention", CAPTURABLE)
@pytest.mark.parametrize("num_prefix", [0, 18])
def test_a_captured_forward_reads_nothing_back(folder, attention, num_prefix):
    """A bucket's forward runs on tensors without values, by the operators of a card.

    So nothing in it waits for the device, which a capture forbids, and the operators take what
    they are given.
    """
    meta = torch.device("meta")
    base = native_model(folder, torch.bfloat16)
    a, weights = base.architecture, base._weights
    layers = tuple(
        Layer(*(getattr(layer, name).to(meta) for name in Layer.__slots__))
        for layer in weights.layers
    )
    model = Qwen3Model(
        Weights(weights.embedding.to(meta), layers, weights.norm.to(meta)),
        a,
        attention=behind_prefix(attention),
        dense=base._dense,
        device=meta,
        dtype=torch.bfloat16,
    )
    bucket = choose_bucket(random_batch(random.Random(0), 3, 9, range(num_prefix)))
    assert bucket is not None
    words = torch.empty(bucket.shape.num_words, dtype=torch.int64, device=meta)
    texts = Texts([], [], bucket.longest, bucket.longest + bucket.prefix_rows)
    shape = (a.num_layers, 2, a.num_kv_heads, bucket.prefix_rows, a.head_dim)
    prefix = torch.empty(shape, dtype=torch.bfloat16, device=meta) if num_prefix else None
    vectors = unit_vectors(model.forward(Plan.of_words(words, bucket.shape, texts), prefix))
    assert vectors.shape == (bucket.num_texts, a.hidden_size)
    assert vectors.dtype == torch.float32


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_cuda_graphs_equal_the_forward_without_them(folder, dtype):
    """On a card, queries and short documents get the same vectors by graph and without."""
    from qwen3_embedding_integrations.core.loading import load_model

    config = EncoderConfig(model=str(folder), device="cuda", dtype=dtype)
    loaded = load_model(config.engine)
    head = loaded.engine._workers[0]._launch
    assert head.graphs is not None
    rng = random.Random(10)
    try:
        for _ in range(3):
            for num_texts, longest, prefix in BATCHES.values():
                batch = random_batch(rng, num_texts, longest, prefix)
                by_graph = head(batch)()
                without = embedding_head(head._model)(batch)()
                cosine = (by_graph * without).sum(1).min()
                assert cosine > (0.9999 if dtype == "float32" else 0.999), f"{batch.lengths}"
        assert head.graphs.num_captured > 0
    finally:
        loaded.engine.close()


@pytest.mark.cuda
def test_cuda_queries_from_many_threads_equal_those_alone(folder):
    """On a card, queries merged into graphs of any size get the vectors they get alone."""
    from concurrent.futures import ThreadPoolExecutor

    queries = [f"query number {i} about subject {i * i}" for i in range(200)]
    with Qwen3Encoder(EncoderConfig(model=str(folder), device="cuda")) as encoder:
        alone = np.concatenate([encoder.encode_queries([query]) for query in queries])
        with ThreadPoolExecutor(32) as callers:
            rows = list(callers.map(lambda query: encoder.encode_queries([query])[0], queries))
    cosine = (alone * np.stack(rows)).sum(1).min()
    assert cosine > 0.999, f"worst cosine {cosine}"


def test_a_head_that_is_gone_leaves_nothing(plain: Qwen3Model) -> None:
    """Without Python's collector of cycles the model goes with its head, graphs and all."""

    def capture(forward: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        output = forward()
        return lambda: output  # as a CUDA graph: what it reads and writes, not what was captured

    model = copy.copy(plain)
    head = embedding_head(model, capture)
    head(random_batch(random.Random(1), 2, 5))()
    assert head.graphs is not None
    assert head.graphs.num_captured == 1
    held = weakref.ref(model)
    gc.disable()
    try:
        del head, model
        assert held() is None
    finally:
        gc.enable()
