"""Every attention backend this machine has, against a loop in float32."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_embedding_integrations.core.attention import (
    QUERY_BLOCK,
    Segments,
    blocked_attention,
    choose_attention,
    efficient_attention,
    flash_attention,
    sdpa_attention,
)
from qwen3_embedding_integrations.errors import ConfigError

CPU = torch.device("cpu")
HEADS, KEY_HEADS, WIDTH = 4, 2, 16

# Per text: (queries, keys); the queries are the last ones of the text.
LAYOUTS = {
    "mixed lengths": [(1, 1), (7, 7), (33, 33), (2, 2), (64, 64), (5, 5)],
    "equal lengths": [(9, 9)] * 5,
    "runs of equal lengths": [(3, 3), (3, 3), (8, 8), (8, 8), (3, 3)],
    "one text": [(50, 50)],
    "one token": [(1, 1)],
    "with a prefix": [(4, 22), (9, 27), (9, 27), (1, 19), (30, 48)],
    "a long prefix": [(2, 130), (2, 130), (3, 131)],
    "single queries": [(1, 1), (1, 12), (1, 12), (1, 40), (1, 2)],
    "single queries of equal texts": [(1, 20)] * 4,
    "equal queries, other keys": [(5, 5), (5, 9), (5, 9), (5, 6)],
}


def segments_of(lengths: list[tuple[int, int]], device: torch.device = CPU) -> Segments:
    q_lengths, k_lengths = [q for q, _ in lengths], [k for _, k in lengths]

    def starts(values: list[int]) -> torch.Tensor:
        return torch.tensor([0, *values], device=device).cumsum(0).int()

    return Segments(q_lengths, k_lengths, starts(q_lengths), starts(k_lengths))


def tensors_of(lengths, heads=HEADS, key_heads=KEY_HEADS, width=WIDTH, seed=0):
    """Return q, k, v as the model gives them: strided views of wider products."""
    generator = torch.Generator().manual_seed(seed)
    num_queries, num_keys = sum(q for q, _ in lengths), sum(k for _, k in lengths)
    q = torch.randn(num_queries, heads + 2 * key_heads, width, generator=generator)[:, :heads]
    kv = torch.randn(num_keys, 2 * key_heads, width, generator=generator)
    return q, kv[:, :key_heads], kv[:, key_heads:]


def loop_attention(q, k, v, segments):
    """One text, one head, one query at a time, in float32."""
    q, k, v = q.float(), k.float(), v.float()
    out, group = torch.empty_like(q), q.shape[1] // k.shape[1]
    q_start = k_start = 0
    for num_queries, num_keys in zip(segments.q_lengths, segments.k_lengths, strict=True):
        for row in range(num_queries):
            seen = slice(k_start, k_start + num_keys - num_queries + row + 1)
            for head in range(q.shape[1]):
                scores = k[seen, head // group] @ q[q_start + row, head] / q.shape[2] ** 0.5
                out[q_start + row, head] = scores.softmax(0) @ v[seen, head // group]
        q_start, k_start = q_start + num_queries, k_start + num_keys
    return out


def assert_equals_the_loop(attention, lengths, *, dtype, device, atol, **shape):
    q, k, v = (t.to(dtype) for t in tensors_of(lengths, **shape))
    expected = loop_attention(q, k, v, segments_of(lengths))
    moved = (t.to(device) for t in (q, k, v))
    actual = attention(*moved, segments_of(lengths, device))
    assert actual.shape == q.shape
    difference = (actual.cpu().float() - expected).abs().max().item()
    assert difference <= atol, f"max difference {difference:.2e}, allowed {atol:.0e}"


@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
def test_sdpa_equals_the_loop(lengths):
    """Per-sequence SDPA sees exactly the keys of its own text up to its own position."""
    assert_equals_the_loop(sdpa_attention, lengths, dtype=torch.float32, device=CPU, atol=2e-6)


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (4, 4), (8, 1), (16, 8)])
def test_sdpa_knows_grouped_heads(heads, key_heads):
    """Every number of query heads per key head gives what the loop gives."""
    lengths = LAYOUTS["with a prefix"]
    shape = {"heads": heads, "key_heads": key_heads, "width": 32}
    assert_equals_the_loop(
        sdpa_attention, lengths, dtype=torch.float32, device=CPU, atol=2e-6, **shape
    )


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_sdpa_in_half_precision(dtype, atol):
    """In bfloat16 and float16 the result is the loop's to their own rounding."""
    for lengths in LAYOUTS.values():
        assert_equals_the_loop(sdpa_attention, lengths, dtype=dtype, device=CPU, atol=atol)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=6))
def test_sdpa_equals_the_loop_for_any_lengths(pairs):
    """Whatever the lengths and prefixes, no text sees another's keys or its own future."""
    lengths = [(queries, queries + prefix) for queries, prefix in pairs]
    assert_equals_the_loop(sdpa_attention, lengths, dtype=torch.float32, device=CPU, atol=2e-6)


BLOCKED_LAYOUTS = LAYOUTS | {
    "blocks and a rest": [(2 * QUERY_BLOCK + 37, 2 * QUERY_BLOCK + 37), (60, 60), (60, 60)],
    "exactly a block": [(QUERY_BLOCK, QUERY_BLOCK), (QUERY_BLOCK, QUERY_BLOCK + 18)],
    "long prefix, many queries": [(QUERY_BLOCK + 5, QUERY_BLOCK + 90), (1, 300), (1, 1)],
}


@pytest.mark.parametrize("lengths", BLOCKED_LAYOUTS.values(), ids=BLOCKED_LAYOUTS)
def test_blocked_equals_the_loop(lengths):
    """Blocks of bfloat16 products give the loop's result to bfloat16's rounding."""
    assert_equals_the_loop(blocked_attention, lengths, dtype=torch.float32, device=CPU, atol=3e-2)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (8, 1), (16, 8)])
def test_blocked_knows_grouped_heads(heads, key_heads):
    """Every number of query heads per key head gives what the loop gives."""
    lengths = BLOCKED_LAYOUTS["long prefix, many queries"]
    shape = {"heads": heads, "key_heads": key_heads, "width": 32}
    assert_equals_the_loop(
        blocked_attention, lengths, dtype=torch.float32, device=CPU, atol=3e-2, **shape
    )


def test_blocked_sees_no_later_key():
    """A key or value after a query's position changes nothing of what it gets, not a bit."""
    lengths = [(QUERY_BLOCK + 40, QUERY_BLOCK + 40)]
    q, k, v = tensors_of(lengths)
    before = blocked_attention(q, k, v, segments_of(lengths))
    for position in (50, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 39):
        other_k, other_v = k.clone(), v.clone()
        other_k[position:], other_v[position:] = 100.0, -100.0
        after = blocked_attention(q, other_k, other_v, segments_of(lengths))
        assert torch.equal(before[:position], after[:position])
        assert not torch.equal(before[position:], after[position:])


@pytest.mark.parametrize("requested", ["flash", "efficient"])
def test_a_backend_the_device_lacks_is_refused(requested):
    """Asking for a CUDA backend on a processor is an error that names what works."""
    with pytest.raises(ConfigError, match=f'attention="{requested}" needs a CUDA.*use "auto"'):
        choose_attention(requested, CPU, torch.float32)


@pytest.mark.parametrize("requested", ["auto", "sdpa"])
def test_a_processor_takes_sdpa_and_says_why(requested):
    """On a processor the choice is SDPA, with device and dtype as the reason."""
    attention, reason = choose_attention(requested, CPU, torch.bfloat16)
    assert attention is sdpa_attention
    assert reason == "sdpa (cpu, bfloat16)"


def test_a_processor_fast_in_bfloat16_takes_blocks():
    """Where bfloat16 products are fast, bfloat16 attention runs in blocks; float32 does not."""
    fast = {"has_fast_bfloat16": True}
    attention, reason = choose_attention("auto", CPU, torch.bfloat16, **fast)
    assert attention is blocked_attention
    assert reason == "blocked (cpu, bfloat16)"
    assert choose_attention("auto", CPU, torch.float32, **fast)[0] is sdpa_attention
    assert choose_attention("sdpa", CPU, torch.bfloat16, **fast)[0] is sdpa_attention


CUDA_BACKENDS = [
    (flash_attention, torch.bfloat16, 2e-2),
    (flash_attention, torch.float16, 3e-3),
    (efficient_attention, torch.float32, 5e-3),  # its products may be TF32
    (efficient_attention, torch.bfloat16, 2e-2),
    (sdpa_attention, torch.bfloat16, 2e-2),
    (sdpa_attention, torch.float32, 5e-3),
]


@pytest.mark.cuda
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("attention", "dtype", "atol"), CUDA_BACKENDS)
def test_cuda_backends_equal_the_loop(attention, dtype, atol, lengths):
    """Each packed CUDA backend gives the loop's result to its dtype's rounding."""
    if attention is flash_attention and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("FlashAttention needs sm_80")
    device = torch.device("cuda")
    shape = {"heads": 16, "key_heads": 8, "width": 128}
    assert_equals_the_loop(attention, lengths, dtype=dtype, device=device, atol=atol, **shape)


@pytest.mark.cuda
def test_cuda_takes_its_best_backend():
    """On CUDA "auto" takes flash in half precision from sm_80 on, else the efficient one."""
    device = torch.device("cuda")
    can_flash = torch.cuda.get_device_capability(device) >= (8, 0)
    best, reason = choose_attention("auto", device, torch.bfloat16)
    assert best is (flash_attention if can_flash else efficient_attention), reason
    assert choose_attention("auto", device, torch.float32)[0] is efficient_attention
    with pytest.raises(ConfigError, match="sm_80"):
        choose_attention("flash", device, torch.float32)


def test_one_texts_keys_do_not_reach_another():
    """Changing one text's keys and values changes no other text's result by a bit."""
    lengths = LAYOUTS["runs of equal lengths"]
    q, k, v = tensors_of(lengths)
    before = sdpa_attention(q, k, v, segments_of(lengths))
    k, v = k.clone(), v.clone()
    own = slice(3, 6)  # the second text
    k[own] += random.Random(0).random()
    v[own] *= 3
    after = sdpa_attention(q, k, v, segments_of(lengths))
    others = torch.ones(len(q), dtype=torch.bool)
    others[own] = False
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[own], after[own])


def test_the_packed_cuda_operators_take_our_calls():
    """The two operators of CUDA accept our arguments and give one row per query (meta device)."""
    q = torch.empty(10, 4, 64, device="meta", dtype=torch.bfloat16)
    k = torch.empty(16, 2, 64, device="meta", dtype=torch.bfloat16)
    starts = torch.empty(3, device="meta", dtype=torch.int32)
    segments = Segments([3, 7], [6, 10], starts, starts)
    for backend in (flash_attention, efficient_attention):
        assert backend(q, k, k, segments).shape == q.shape
    names = [one.name for one in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    assert names[3:10] == [
        "cum_seq_q",
        "cum_seq_k",
        "max_q",
        "max_k",
        "dropout_p",
        "is_causal",
        "return_debug_mask",
    ]
    operator = torch.ops.aten._efficient_attention_forward.default
    names = [one.name for one in operator._schema.arguments]
    assert names[3:10] == [
        "bias",
        "cu_seqlens_q",
        "cu_seqlens_k",
        "max_seqlen_q",
        "max_seqlen_k",
        "dropout_p",
        "custom_mask_type",
    ]
