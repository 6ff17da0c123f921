"""What the GPU benchmark feeds every engine, at which scale, and what it costs by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3_embedding_integrations.bench.random_model import SHAPE_06B
from qwen3_embedding_integrations.core.checkpoint import Architecture

TokenIds = np.ndarray[Any, np.dtype[np.int32]]

LARGE = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": SHAPE_06B,
    "4b": SHAPE_06B | LARGE | {"hidden_size": 2560, "intermediate_size": 9728},
    "8b": SHAPE_06B | LARGE | {"hidden_size": 4096, "intermediate_size": 12288},
    "small": SHAPE_06B
    | {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}


@dataclass(frozen=True)
class Mix:
    """Lengths of texts, lognormal: like MS MARCO's passages, C-MTEB's documents, long ones."""

    name: str
    median: float
    sigma: float
    cap: int


MIXES = (
    Mix("msmarco-like", 72, 0.45, 512),
    Mix("cmteb-like", 220, 0.8, 2048),
    Mix("long", 3500, 0.5, 16384),
)
QUERIES = Mix("queries", 9, 0.4, 64)


@dataclass(frozen=True)
class Scale:
    """How much is measured: enough to be sure of on a card, next to nothing for a trial."""

    mix_tokens: int
    longest: int  # texts are cut to it
    num_runs: int  # of each measurement, the median counts
    gemm_rows: tuple[int, ...]
    square: int  # of the matrices whose product is the ceiling
    copy_bytes: int
    num_checked: int  # texts compared with float32, up to `longest_checked` tokens
    longest_checked: int
    num_queries: int  # one after another
    num_batched_queries: int  # in one call
    callers: tuple[int, ...]
    budgets: tuple[int, ...]
    batch_sizes: tuple[int, ...]  # of the others


CARD = Scale(
    mix_tokens=400_000,
    longest=16384,
    num_runs=10,
    gemm_rows=(16, 64, 256, 1024, 4096, 16384, 32768),
    square=8192,
    copy_bytes=2**31,
    num_checked=64,
    longest_checked=4000,
    num_queries=1000,
    num_batched_queries=8192,
    callers=(1, 4, 16, 64),
    budgets=(2048, 4096, 8192, 16384, 32768),
    batch_sizes=(32, 128, 512),
)
TRIAL = Scale(
    mix_tokens=600,
    longest=256,
    num_runs=2,
    gemm_rows=(16,),
    square=128,
    copy_bytes=2**20,
    num_checked=6,
    longest_checked=64,
    num_queries=5,
    num_batched_queries=8,
    callers=(1, 4),
    budgets=(256, 2048),
    batch_sizes=(4,),
)


def random_texts(mix: Mix, scale: Scale, num_ids: int, *, seed: int) -> list[TokenIds]:
    """Return texts of about `scale.mix_tokens` tokens in all, random ids, none alike."""
    rng = np.random.default_rng(seed)
    cap = min(mix.cap, scale.longest)
    lengths: list[int] = []
    while sum(lengths) < scale.mix_tokens:
        length = np.exp(rng.normal(np.log(mix.median), mix.sigma))
        lengths.append(int(np.clip(length, 3, cap)))
    return texts_of_lengths(lengths, num_ids, rng)


def texts_of_lengths(lengths: list[int], num_ids: int, rng: np.random.Generator) -> list[TokenIds]:
    """Return one text of random ids for each length."""
    return [rng.integers(num_ids, size=length).astype(np.int32) for length in lengths]


def matrix_parameters(a: Architecture) -> int:
    """Return the weights that every token is multiplied with."""
    heads = (2 * a.num_heads + 2 * a.num_kv_heads) * a.head_dim
    return a.num_layers * a.hidden_size * (heads + 3 * a.intermediate_size)


def tera_operations(a: Architecture, lengths: list[int]) -> float:
    """Return 1e12 operations of matrix products and causal attention for texts of these lengths.

    Of all layers whole, whoever computes them: an engine that leaves some out is that much faster.
    """
    linear = 2 * matrix_parameters(a) * sum(lengths)
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return (linear + 4 * a.num_heads * a.head_dim * a.num_layers * pairs) / 1e12
