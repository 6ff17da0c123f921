"""The compiled layers: the arithmetic by its definition, the same bits for everyone."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

import numba

from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.core import fused, kernels
from qwen3_embedding_integrations.core.attention import Segments, sdpa_attention
from qwen3_embedding_integrations.core.checkpoint import Architecture
from qwen3_embedding_integrations.core.cpu_dense import CpuDense
from qwen3_embedding_integrations.core.fused import FusedDense
from qwen3_embedding_integrations.core.linear import (
    Int8Linear,
    QuantizedWeight,
    WidenedLinear,
    quantize_weight,
)
from qwen3_embedding_integrations.core.model import Qwen3Model
from qwen3_embedding_integrations.core.packing import PackedBatch
from qwen3_embedding_integrations.core.row_tiles import gate_row
from qwen3_embedding_integrations.core.team import limit_threads
from qwen3_embedding_integrations.core.tiles import LANES
from qwen3_embedding_integrations.core.weights import Layer, Weights
from qwen3_embedding_integrations.core.workers import on_fresh_thread
from qwen3_embedding_integrations.demo import load_texts

T = TypeVar("T")
SHAPE = Architecture(
    vocab_size=500, hidden_size=128, intermediate_size=96, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=64, rms_norm_eps=1e-6, rope_theta=1e6, max_positions=4096,
)  # fmt: skip
# Fewer and more than a wide tile, a thin tile, a panel have.
ROWS = [1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 256, 300]

OBSTACLES = {dtype: fused.obstacle(SHAPE, dtype) for dtype in (torch.int8, torch.bfloat16)}

pytestmark = pytest.mark.skipif(all(OBSTACLES.values()), reason=f"not here: {OBSTACLES}")


def make_layer(generator: torch.Generator, dtype: torch.dtype) -> Layer:
    a = SHAPE

    def weight(num_outputs: int, num_inputs: int) -> QuantizedWeight | torch.Tensor:
        drawn = torch.randn(num_outputs, num_inputs, generator=generator) * num_inputs**-0.5
        return quantize_weight(drawn) if dtype == torch.int8 else drawn.to(dtype)

    def norm(size: int) -> torch.Tensor:
        return torch.rand(size, generator=generator) + 0.5

    width = a.num_heads * a.head_dim
    return Layer(
        qkv=weight(width + 2 * a.num_kv_heads * a.head_dim, a.hidden_size),
        o=weight(a.hidden_size, width),
        gate_up=weight(2 * a.intermediate_size, a.hidden_size),
        down=weight(a.hidden_size, a.intermediate_size),
        input_norm=norm(a.hidden_size),
        post_attention_norm=norm(a.hidden_size),
        q_norm=norm(a.head_dim),
        k_norm=norm(a.head_dim),
    )


@pytest.fixture(scope="module", params=OBSTACLES, ids=str)
def dtype(request) -> torch.dtype:
    """Each type of weights that this processor multiplies."""
    if OBSTACLES[request.param]:
        pytest.skip(f"not here: {OBSTACLES[request.param]}")
    return request.param


@pytest.fixture(scope="module")
def layers(dtype) -> list[Layer]:
    generator = torch.Generator().manual_seed(1)
    return [make_layer(generator, dtype) for _ in range(SHAPE.num_layers)]


def make_linear(weight):
    return (Int8Linear if isinstance(weight, QuantizedWeight) else WidenedLinear)(weight)


def make_dense(dtype: torch.dtype) -> FusedDense:
    def make() -> FusedDense:
        limit_threads(3)  # of the thread that loads a model
        return FusedDense(SHAPE, CpuDense(SHAPE, make_linear), dtype)

    return on_fresh_thread(make)


def make_model(layers: list[Layer], dtype: torch.dtype) -> Qwen3Model:
    dense = make_dense(dtype)
    embedding = torch.randn(500, 128, generator=torch.Generator().manual_seed(2))
    weights = Weights(embedding, tuple(dense.pack(layers)), torch.ones(128))
    return Qwen3Model(
        weights, SHAPE, attention=dense.spread(sdpa_attention), dense=dense,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(layers, dtype) -> Qwen3Model:
    return make_model(layers, dtype)


def led(parts: FusedDense | Qwen3Model, work: Callable[[], T]) -> T:
    """Return work() of a thread whose forwards use all threads, 3: more than many machines have."""

    def answer() -> T:
        parts.lead()
        return work()

    return on_fresh_thread(answer)


def alone(parts: FusedDense | Qwen3Model, work: Callable[[], T]) -> T:
    """Return work() of a thread like a team's member's, whose forwards use no other."""
    del parts

    def answer() -> T:
        limit_threads(1)
        return work()

    return on_fresh_thread(answer)


def batch_of(lengths: list[int]) -> PackedBatch:
    rng = np.random.default_rng(3)
    return PackedBatch.pack([rng.integers(0, 500, n, dtype=np.int32) for n in lengths])


def segments_of(lengths: list[int], num_shared: int = 0) -> Segments:
    """Return texts of so many queries, each behind as many keys and those of a prefix."""
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    return Segments(lengths, [num_shared + n for n in lengths], ends, ends)


def attention_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the attention of one text by its definition, in float64, (L, heads, D)."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[1:]).triu_(scores.shape[2] - scores.shape[1] + 1).bool()
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1)


def taken(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    step = x.abs().amax(1, keepdim=True) / 127
    return (x / step).round().double(), step.double()


def product(x: torch.Tensor, weight: QuantizedWeight | torch.Tensor) -> torch.Tensor:
    """Return the product of the rounded sides, in whole numbers and float64."""
    if isinstance(weight, torch.Tensor):
        return x.bfloat16().double() @ weight.double().T
    levels, step = taken(x.float())
    return (levels @ weight.values.double().T) * step * weight.scale.double()


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * weight / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()


def close(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_where_they_are_not_for(dtype, monkeypatch):
    """A shape that tiles do not divide, and a system without what threads wait by, are named."""
    narrow = fused.obstacle(replace(SHAPE, head_dim=80), dtype)
    assert "multiples of 64" in (narrow or "")
    uneven = fused.obstacle(replace(SHAPE, intermediate_size=100), dtype)
    assert "multiple of 32" in (uneven or "")
    monkeypatch.setattr(sys, "platform", "win32")
    assert "Windows" in (fused.obstacle(SHAPE, dtype) or "")


@pytest.mark.parametrize("run", [led, alone])
@pytest.mark.parametrize("num_rows", ROWS)
def test_a_layer_is_what_its_definition_says(layers, dtype, num_rows, run):
    """Queries, keys, values and the residual are those of the rounded products in float64."""
    a, layer, dense = SHAPE, layers[0], make_dense(dtype)
    # bfloat16 rounds a row before its norm divides it, and so to other neighbours than here.
    error = 1e-3 if dtype == torch.int8 else 4e-3
    [packed, *_] = dense.pack(layers)
    generator = torch.Generator().manual_seed(num_rows)
    residual = torch.randn(num_rows, a.hidden_size, generator=generator)
    positions, after, segments = torch.arange(num_rows), residual.clone(), segments_of([num_rows])
    attend = dense.spread(sdpa_attention)

    def forward() -> list[torch.Tensor]:
        with dense.begin(positions, segments, None) as state:
            projected = [one.clone() for one in dense.project(packed, None, after, state)]
            attended = attend(*projected, segments, None)
            dense.finish(packed, attended, after, state)
        return [*projected, attended]

    q, k, v, attended = run(dense, forward)
    heads = product(normed(residual, layer.input_norm), layer.qkv).view(num_rows, -1, a.head_dim)
    cos, sin = kernels.rotary_angles(positions, a.head_dim, a.rope_theta)
    own = heads.split([a.num_heads, a.num_kv_heads, a.num_kv_heads], dim=1)
    assert close(q, kernels.rotate(normed(own[0], layer.q_norm), cos, sin)) <= error
    assert close(k, kernels.rotate(normed(own[1], layer.k_norm), cos, sin)) <= error
    assert close(v, own[2]) <= error
    assert close(attended, attention_of(q, k, v)) <= 1e-6
    middle = residual + product(attended.flatten(1), layer.o)
    gate, up = product(normed(middle, layer.post_attention_norm), layer.gate_up).chunk(2, dim=1)
    expected = middle + product(torch.nn.functional.silu(gate) * up, layer.down)
    # A value on the edge between two levels may fall to the other one.
    assert close(after, expected) <= 3e-3


@numba.njit
def gated(pair, out):
    """Write silu of the first vector times the second one."""
    gate_row(pair.ctypes.data, 4 * len(out), out.ctypes.data)


def test_the_exponential_is_right_to_rounding():
    """silu over its whole range is float64's, to a few units of the last place; NaN stays."""
    x = np.array(
        [-200.0, -87.5, -20.0, -1e-3, -0.0, 1e-30, 0.3466, 0.5, 1.0, 17.3, 86.0, 88.0, 1e30, -3e38,
         np.nan, np.inf],
        np.float32,
    )  # fmt: skip
    found = np.empty(LANES, np.float32)
    gated(np.concatenate([x, np.ones(LANES, np.float32)]), found)
    wide = x[:-2].astype(np.float64)
    with np.errstate(over="ignore"):
        expected = wide / (1 + np.exp(-wide))
    assert found[:-2] == pytest.approx(expected, rel=1e-6, abs=1e-35)
    assert np.isnan(found[-2])
    assert found[-1] == np.inf


@pytest.mark.parametrize("run", [led, alone])
@pytest.mark.parametrize("num_shared", [0, 1, 29])
@pytest.mark.parametrize("lengths", [[1], [2, 7, 16], [5, 33, 1, 4], [70, 3, 300]])
def test_attention_is_what_its_definition_says(dtype, lengths, num_shared, run):
    """Of each text behind the prefix's keys, for all queries and for the last ones alone."""
    a, dense = SHAPE, make_dense(dtype)
    generator = torch.Generator().manual_seed(len(lengths))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    num_rows = sum(lengths)
    # Scores of up to a few hundred: of some rows all but one weight are nothing.
    q = 8 * draw(num_rows, a.num_heads, a.head_dim)
    k, v = draw(num_rows, a.num_kv_heads, a.head_dim), draw(num_rows, a.num_kv_heads, a.head_dim)
    prefix = draw(a.num_layers, 2, a.num_kv_heads, num_shared, a.head_dim)
    segments = segments_of(lengths, num_shared)
    last = replace(segments, q_lengths=[1] * len(lengths))
    ends = segments.cu_q[1:].long() - 1
    attend = dense.spread(sdpa_attention)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        with dense.begin(torch.arange(num_rows), segments, prefix):
            return attend(q, k, v, segments, prefix[0]), attend(q[ends], k, v, last, prefix[0])

    found, of_last = run(dense, forward)
    shared_k, shared_v = prefix[0].transpose(1, 2)  # (P, Hk, D)
    expected: list[torch.Tensor] = []
    for own_q, own_k, own_v in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        behind = torch.cat([shared_k, own_k]), torch.cat([shared_v, own_v])
        expected.append(attention_of(own_q, *behind))
    assert close(found, torch.cat(expected)) <= 1e-6
    assert torch.equal(of_last, found[ends])


def test_an_attention_that_was_asked_for_is_used(layers, dtype):
    """attention="sdpa" runs torch's, on all threads, to the same vectors."""
    dense = make_dense(dtype)
    asked: list[int] = []

    def attention(q, k, v, segments):
        asked.append(len(q))
        return sdpa_attention(q, k, v, segments)

    embedding = torch.randn(500, 128, generator=torch.Generator().manual_seed(2))
    torch_model = Qwen3Model(
        Weights(embedding, tuple(dense.pack(layers)), torch.ones(128)), SHAPE,
        attention=dense.spread(attention, may_replace=False), dense=dense,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    own = make_model(layers, dtype)
    for batch in (
        batch_of([9]),
        batch_of([40, 60]),
        PackedBatch.pack([[7] * 5], prefix_ids=(1, 2)),
    ):
        asked.clear()
        found = led(torch_model, lambda batch=batch: torch_model(batch))
        assert asked
        assert (
            close(found, led(own, lambda batch=batch: own(batch))) <= 2e-2
        )  # of values between levels


@pytest.mark.parametrize("lengths", [[1], [9], [64], [65], [300], [5, 40, 3], [120, 7, 200, 64]])
def test_threads_and_neighbours_change_no_bit(model, lengths):
    """A text's vector is the same bits alone and beside others, whatever threads there are."""
    texts = batch_texts(batch_of(lengths))
    for prefix in ((), tuple(range(10, 22))):
        batch = PackedBatch.pack(texts, prefix_ids=prefix)
        together = led(model, lambda batch=batch: model(batch))
        assert torch.equal(together, alone(model, lambda batch=batch: model(batch)))
        for row, text in enumerate(texts):
            single = PackedBatch.pack([text], prefix_ids=prefix)
            found = led(model, lambda single=single: model(single))
            assert torch.equal(found, together[row : row + 1])


def batch_texts(batch: PackedBatch) -> list[np.ndarray]:
    return np.split(batch.input_ids, batch.cu_seqlens[1:-1])


@pytest.mark.parametrize("run", [led, alone])
def test_layers_of_other_weights_stand_between(layers, dtype, run):
    """A layer with a projection of another type runs as it would without the compiled ones."""
    mixed = list(layers)
    weight = layers[1].o
    wide = weight.to_float() if isinstance(weight, QuantizedWeight) else weight.float()
    mixed[1] = Layer(**{n: getattr(layers[1], n) for n in Layer.__slots__} | {"o": wide})
    dense = make_dense(dtype)
    plain = CpuDense(SHAPE, make_linear)
    found: dict[type, list[torch.Tensor]] = {FusedDense: [], CpuDense: []}
    for parts in (dense, plain):
        embedding = torch.randn(500, 128, generator=torch.Generator().manual_seed(2))
        weights = Weights(embedding, tuple(parts.pack(mixed)), torch.ones(128))
        model = Qwen3Model(
            weights, SHAPE, attention=parts.spread(sdpa_attention), dense=parts,
            device=torch.device("cpu"), dtype=torch.float32,
        )  # fmt: skip
        for lengths in ([9], [40, 60]):
            found[type(parts)].append(run(model, lambda m=model, n=lengths: m(batch_of(n))))
    assert [type(one) for one in dense.pack(mixed)][1] is not int
    cosines = torch.nn.functional.cosine_similarity(*(torch.cat(one) for one in found.values()))
    assert cosines.min() >= 0.9999


@pytest.mark.parametrize("run", [led, alone])
@pytest.mark.parametrize("num_rows", [7, 100])
def test_nan_stays_in_its_row(layers, dtype, num_rows, run):
    """NaN or inf in a text makes its row NaN, for the head to refuse, and no other."""
    dense = make_dense(dtype)
    [packed, *_] = dense.pack(layers)
    residual = torch.ones(num_rows, SHAPE.hidden_size)
    residual[2, 5], residual[4, 6] = float("nan"), float("inf")
    segments, attend = segments_of([1] * num_rows), dense.spread(sdpa_attention)

    def forward() -> torch.Tensor:
        with dense.begin(torch.arange(num_rows), segments, None) as state:
            q, k, v = (one.clone() for one in dense.project(packed, None, residual, state))
            dense.finish(packed, attend(q, k, v, segments, None), residual, state)
        return v

    v = run(dense, forward)
    rows = [row for row in range(num_rows) if row not in {2, 4}]
    for values in (v.flatten(1), residual):
        assert values[rows].isfinite().all()
        assert not values[2].isfinite().any()
        assert not values[4].isfinite().any()


class Failing(list):
    """What keeps a prefix's layers, and fails at the second."""

    def append(self, item) -> None:
        if self:
            raise RuntimeError("in the middle")
        super().append(item)


def test_a_forward_that_fails_leaves_no_thread_at_work(model):
    """After an error in the middle the helpers are free, and the next forward is right."""

    @torch.inference_mode()
    def work() -> None:
        expected = model(batch_of([9]))
        for lengths in ([9], [200]):
            with pytest.raises(RuntimeError, match="in the middle"):
                model._run(batch_of(lengths), None, Failing())
        assert torch.equal(model(batch_of([9])), expected)

    led(model, work)


def test_without_numba_the_vectors_are_the_same_to_rounding():
    """Where Numba is missing, oneDNN computes: a note says so, and cosines stay at 0.9999."""
    texts = [text.document for text in load_texts()][:20]
    script = (
        "import sys, logging, numpy as np; sys.modules['numba'] = None\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder\n"
        "from qwen3_embedding_integrations.demo import load_texts\n"
        "texts = [text.document for text in load_texts()][:20]\n"
        "encoder = Qwen3Encoder(EncoderConfig(model='tiny', quantization='int8'))\n"
        "np.save(sys.stdout.buffer, encoder.encode_documents(texts))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert b"plain, in blocks (no Numba" in done.stderr
    with Qwen3Encoder(EncoderConfig(model="tiny", quantization="int8")) as encoder:
        found = encoder.encode_documents(texts)
    cosines = (found * np.load(io.BytesIO(done.stdout))).sum(1)
    assert cosines.min() >= 0.9999
