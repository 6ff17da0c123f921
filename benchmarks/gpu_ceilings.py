"""What a device can do at best: memory bandwidth, and the model's own matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_workload import Scale
from qwen3_embedding_integrations.core.checkpoint import Architecture

FP8_CAPABILITY = (8, 9)
FP8_MAX = 448.0  # the largest float8_e4m3fn


def median_s(function: Callable[[], object], device: str, num_runs: int) -> float:
    """Return the median seconds of a call, after a few to warm up; by events on a card."""
    is_card = device.startswith("cuda")
    for _ in range(3 if is_card else 1):
        function()
    times: list[float] = []
    for _ in range(num_runs):
        if is_card:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_ceilings(a: Architecture, device: str, scale: Scale) -> dict[str, Any]:
    """Return copy bandwidth, the rate of a large square product, and of the model's products."""
    bandwidth = _copy_rate(scale.copy_bytes, device, scale.num_runs) / 1e12
    n = scale.square
    # Random values, not zeros: a card computes zeros faster than it computes anything else.
    x, y = _random(n, n, device), _random(n, n, device)
    peaks = {"bfloat16": 2 * n**3 / median_s(lambda: x @ y, device, scale.num_runs) / 1e12}
    if multiplies_fp8(device):
        product = fp8_product(x, y)
        peaks["fp8"] = 2 * n**3 / median_s(product, device, scale.num_runs) / 1e12
    products = [
        row for rows in scale.gemm_rows for row in _model_products(a, rows, device, scale.num_runs)
    ]
    return {"copy_tb_s": bandwidth, "square_product_tflops": peaks, "model_products": products}


def _copy_rate(num_bytes: int, device: str, num_runs: int) -> float:
    """Return bytes read and written a second."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_s(lambda: target.copy_(source), device, num_runs)


def _model_products(a: Architecture, rows: int, device: str, num_runs: int) -> list[dict[str, Any]]:
    """Return the time and rate of a layer's four products on so many tokens."""
    shapes = {
        "qkv": ((a.num_heads + 2 * a.num_kv_heads) * a.head_dim, a.hidden_size),
        "o": (a.hidden_size, a.num_heads * a.head_dim),
        "gate_up": (2 * a.intermediate_size, a.hidden_size),
        "down": (a.hidden_size, a.intermediate_size),
    }
    results: list[dict[str, Any]] = []
    for name, (n, k) in shapes.items():
        x, weight = _random(rows, k, device), _random(n, k, device)
        candidates: dict[str, Callable[[], object]] = {
            "bfloat16": lambda x=x, weight=weight: F.linear(x, weight)
        }
        if multiplies_fp8(device):
            candidates["fp8"] = fp8_product(x, weight.t())
        for dtype, product in candidates.items():
            seconds = median_s(product, device, num_runs)
            results.append(
                {
                    "product": name,
                    "tokens": rows,
                    "dtype": dtype,
                    "us": seconds * 1e6,
                    "tflops": 2 * rows * n * k / seconds / 1e12,
                }
            )
    return results


def multiplies_fp8(device: str) -> bool:
    """Whether the device, with this torch, multiplies fp8 with a scale for each row."""
    if not device.startswith("cuda"):
        return False
    if torch.cuda.get_device_capability(torch.device(device)) < FP8_CAPABILITY:
        return False
    try:
        fp8_product(_random(16, 64, device), _random(64, 16, device))()
    except RuntimeError:
        return False
    return True


def fp8_product(x: torch.Tensor, y: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return the product x (T, K) @ y (K, N) in fp8, a scale for each row of x and column of y.

    The call is `torch._scaled_mm` as torch 2.6 to 2.13 have it: y in column-major order, scales
    (T, 1) and (1, N) float32.
    """
    x_scale = x.float().abs().amax(1, keepdim=True) / FP8_MAX
    y_scale = y.float().abs().amax(0, keepdim=True) / FP8_MAX
    x8 = (x / x_scale).to(torch.float8_e4m3fn)
    y8 = (y / y_scale).to(torch.float8_e4m3fn).t().contiguous().t()
    return lambda: torch._scaled_mm(
        x8, y8, x_scale, y_scale, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _random(rows: int, columns: int, device: str) -> torch.Tensor:
    return torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
