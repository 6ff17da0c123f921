"""What this machine is, and what its cores and memory can do: the measure of every result.

`python -m qwen3_embedding_integrations.bench.machine` writes the rates as JSON: a process of its
own, so that no other one keeps the buffers and threads of it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..core.linear import int8_product

FLAGS = ("avx2", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
PACKAGES = ("qwen3-embedding-integrations", "torch", "tokenizers", "safetensors", "numpy")

WIDTH_IN, WIDTH_OUT = 1024, 3072  # of the measured products: the 0.6B model's MLP
ROWS = (1, 16, 128, 1024)
BUFFER_BYTES = 440_000_000  # the 0.6B model's matrices in int8
# The best try counts, what the machine can do; tries are short, to fit between others' turns on it.
TRIES_S, TRY_S = 0.15, 0.005

Product = Callable[[], torch.Tensor]


def describe(command: str, *, packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """Return date, command, processor, its cores and flags, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = set(facts.get("flags", "").split())
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command,
        "processor": facts.get("model name", platform.processor()),
        "family_model": [facts.get("cpu family"), facts.get("model")],
        "cores": os.cpu_count(),
        "flags": {name: name in flags for name in FLAGS},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def available_bytes() -> int | None:
    """Return how much memory can be had without swapping; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    return int(meminfo.read_text().partition("MemAvailable:")[2].split()[0]) * 1024


def measure_rates() -> dict[str, Any]:
    """Return {"gemm_gflops": {dtype: {rows: rate}}, "bandwidth_gb_s": rate of all cores}."""
    gflops = {
        name: {str(rows): max(_gflops(one, rows) for one in _products(name, rows)) for rows in ROWS}
        for name in ("float32", "bfloat16", "int8")
    }
    words = torch.ones(BUFFER_BYTES, dtype=torch.int8).view(torch.int64)
    bandwidth = BUFFER_BYTES / 1e9 / _best_seconds(words.sum)
    return {"gemm_gflops": gflops, "bandwidth_gb_s": bandwidth}


def _products(dtype: str, rows: int) -> list[Product]:
    """Return torch's own product, and oneDNN's of weights in its blocked layout."""
    if dtype == "int8":
        x = torch.randint(-127, 128, (rows, WIDTH_IN), dtype=torch.int8)
        weight = torch.randint(-127, 128, (WIDTH_OUT, WIDTH_IN), dtype=torch.int8)
        columns, levels = weight.t().contiguous(), x.view(torch.uint8) ^ 128
        scales, zeros = torch.ones(WIDTH_OUT), torch.zeros(WIDTH_OUT, dtype=torch.int64)
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        return [
            lambda: torch.ops.aten._int_mm(x, columns),
            lambda: int8_product(levels, 128, packed, scales, zeros),
        ]
    x, weight = torch.randn(rows, WIDTH_IN), torch.randn(WIDTH_OUT, WIDTH_IN)
    x, weight = x.to(getattr(torch, dtype)), weight.to(getattr(torch, dtype))
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight)
    return [
        lambda: F.linear(x, weight),
        lambda: ops._linear_pointwise(x, packed, None, "none", [], ""),
    ]


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


if __name__ == "__main__":
    with torch.inference_mode():
        sys.stdout.write(json.dumps(measure_rates()) + "\n")
