"""What this machine's cores and memory can do: the measure of every result.

`python -m qwen3_embedding_integrations.bench.rates` writes the rates as JSON: a process of its own,
so that no other one keeps the buffers and threads of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..core.linear import int8_product

WIDTH_IN, WIDTH_OUT = 1024, 3072  # of the measured products: the 0.6B model's MLP
ROWS = (1, 16, 128, 1024)
BUFFER_BYTES = 440_000_000  # the 0.6B model's matrices in int8
# The best try counts, what the machine can do; tries are short, to fit between others' turns on it.
TRIES_S, TRY_S = 0.15, 0.005

Product = Callable[[], torch.Tensor]


def measure() -> dict[str, Any]:
    """Return {"gemm_gflops": {dtype: {rows: rate}}, "bandwidth_gb_s": rate}."""
    kinds: dict[str, Callable[[int], list[Product]]] = {
        "float32": lambda rows: _float_products(rows, torch.float32),
        "bfloat16": lambda rows: _float_products(rows, torch.bfloat16),
        "int8": _int8_products,
    }
    gflops = {
        name: {str(rows): max(map(_gflops, products(rows), [rows] * 2)) for rows in ROWS}
        for name, products in kinds.items()
    }
    return {"gemm_gflops": gflops, "bandwidth_gb_s": _bandwidth()}


def _float_products(rows: int, dtype: torch.dtype) -> list[Product]:
    """Return torch's own product and oneDNN's of weights in its blocked layout."""
    x, weight = torch.randn(rows, WIDTH_IN), torch.randn(WIDTH_OUT, WIDTH_IN)
    x, weight = x.to(dtype), weight.to(dtype)
    ops = torch.ops.mkldnn

    def prepacked() -> torch.Tensor:
        return ops._linear_pointwise(x, packed, None, "none", [], "")

    packed = ops._reorder_linear_weight(weight)
    return [lambda: F.linear(x, weight), prepacked]


def _int8_products(rows: int) -> list[Product]:
    """Return torch's int8 product, of plain weights, and oneDNN's of packed ones."""
    x = torch.randint(-127, 128, (rows, WIDTH_IN), dtype=torch.int8)
    weight = torch.randint(-127, 128, (WIDTH_OUT, WIDTH_IN), dtype=torch.int8)
    columns = weight.t().contiguous()
    levels = x.view(torch.uint8) ^ 128
    scales, zeros = torch.ones(WIDTH_OUT), torch.zeros(WIDTH_OUT, dtype=torch.int64)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)

    def prepacked() -> torch.Tensor:
        return int8_product(levels, 128, packed, scales, zeros)

    return [lambda: torch.ops.aten._int_mm(x, columns), prepacked]


def _gflops(product: Product, rows: int) -> float:
    """Return the product's rate in 1e9 operations a second, 0 where torch cannot compute it."""
    try:
        seconds = _best_seconds(product)
    except RuntimeError:
        return 0.0
    return 2e-9 * rows * WIDTH_IN * WIDTH_OUT / seconds


def _best_seconds(function: Callable[[], object]) -> float:
    """Return the seconds of one call in the fastest of many short tries."""
    function()
    end, best = time.perf_counter() + TRIES_S, float("inf")
    while (start := time.perf_counter()) < end:
        num_calls = 0
        while num_calls == 0 or time.perf_counter() - start < TRY_S:
            function()
            num_calls += 1
        best = min(best, (time.perf_counter() - start) / num_calls)
    return best


def _bandwidth() -> float:
    """Return how many GB a second all cores together read."""
    words = torch.ones(BUFFER_BYTES, dtype=torch.int8).view(torch.int64)
    return BUFFER_BYTES / 1e9 / _best_seconds(words.sum)


if __name__ == "__main__":
    with torch.inference_mode():
        sys.stdout.write(json.dumps(measure()) + "\n")
