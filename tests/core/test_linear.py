"""The linear layers of a CPU against plain products."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from qwen3_embedding_integrations.core.linear import (
    Int8Linear,
    PackedLinear,
    QuantizedWeight,
    Rows,
    WidenedLinear,
    has_packed_products,
    quantize_weight,
    select_outputs,
)

needs_packed = pytest.mark.skipif(not has_packed_products(), reason="needs x86 and oneDNN")
ROWS = [1, 2, 15, 16, 100]


def operands(num_rows: int, *, outputs: int = 96, inputs: int = 80) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    scale = torch.rand(num_rows, 1, generator=generator) + 0.5
    return x, weight, scale


def applied(linear, x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    y = linear(linear.take(Rows(x.clone(), scale)))
    assert y.values.dtype == torch.float32
    return y.values if y.scale is None else y.values * y.scale


@needs_packed
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_packed_products_are_products(num_rows, dtype, rtol):
    """Packed weights multiply as plain ones do, and rows' factors stay outside."""
    x, weight, scale = operands(num_rows)
    linear = PackedLinear(weight.to(dtype)).opened()
    for factor in (None, scale):
        expected = x.double() @ weight.double().T * (1 if factor is None else factor)
        error = (applied(linear, x, factor) - expected).norm() / expected.norm()
        assert error <= rtol, f"{num_rows} rows, {dtype}: relative error {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_widened_products_are_exact_in_the_weight(dtype):
    """Narrow weights are widened exactly: the product is float32's of the narrow values."""
    x, weight, scale = operands(20)
    narrow = weight.to(dtype)
    expected = x.double() @ narrow.double().T * scale
    for linear in (WidenedLinear(narrow), WidenedLinear(narrow).opened()):
        error = (applied(linear, x, scale) - expected).norm() / expected.norm()
        assert error <= 1e-6, f"{dtype}: relative error {error:.2e}"


def integer_product(x: torch.Tensor, weight: QuantizedWeight, levels: int) -> torch.Tensor:
    """Return the product of the rounded sides, in whole numbers and float64."""
    step = x.abs().amax(1, keepdim=True) / levels
    rounded = (x / step).round().long()
    return (rounded @ weight.values.long().T).double() * step.double() * weight.scale.double()


@needs_packed
@pytest.mark.parametrize("num_rows", ROWS)
def test_int8_products_are_exact_integers(num_rows):
    """Nothing but the rounding of both sides is lost: the sums are those of whole numbers."""
    x, weight, scale = operands(num_rows, inputs=1024)
    quantized = quantize_weight(weight)
    linear = Int8Linear(quantized)
    levels = int(linear._levels)
    expected = integer_product(x, quantized, levels)
    error = (applied(linear, x, None) - expected).norm() / expected.norm()
    assert error <= 1e-4, f"relative error {error:.2e}"  # a value on the edge between two levels
    true = x.double() @ weight.double().T
    lost = (applied(linear, x, scale) - true * scale).norm() / (true * scale).norm()
    assert lost <= (0.013 if levels == 127 else 0.02), f"rounding lost {lost:.3f}"


@needs_packed
def test_int8_rows_do_not_touch_each_other():
    """A row's result is the same bits whatever rows stand beside it, huge or zero."""
    x, weight, _ = operands(6)
    x[1] *= 1e6
    x[3] = 0
    linear = Int8Linear(quantize_weight(weight))
    together = applied(linear, x, None)
    for row in range(6):
        assert torch.equal(together[row : row + 1], applied(linear, x[row : row + 1], None))
    assert not together[3].any()


@needs_packed
def test_int8_lets_no_nan_pass_as_a_number():
    """NaN or inf among a row's activations makes the whole row NaN, for the head to refuse."""
    x, weight, _ = operands(3)
    x[1, 7] = float("nan")
    x[2, 7] = float("inf")
    y = applied(Int8Linear(quantize_weight(weight)), x, None)
    assert y[0].isfinite().all()
    assert not y[1].isfinite().any()
    assert not y[2].isfinite().any()


def test_weights_are_rounded_to_the_nearest_level():
    """No weight moves by more than half a level of its output, and the largest not at all."""
    _, weight, _ = operands(1)
    weight[5] = 0
    quantized = quantize_weight(weight)
    assert quantized.values.dtype == torch.int8
    moved = (quantized.to_float() - weight).abs()
    assert (moved <= quantized.scale[:, None] * 0.5001).all()
    assert not quantized.to_float()[5].any()
    assert (quantized.values.abs().amax(1)[[*range(5), *range(6, 96)]] == 127).all()


def test_outputs_are_selected_alike():
    """Selecting outputs of a quantised weight selects those of what it stands for."""
    _, weight, _ = operands(1)
    rows = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
    selected = select_outputs(quantize_weight(weight), rows)
    assert torch.equal(selected.to_float(), quantize_weight(weight).to_float()[rows])
    assert torch.equal(select_outputs(weight, rows), weight[rows])


EXTREME = """
import torch
from qwen3_embedding_integrations.core.linear import Int8Linear, Rows, quantize_weight
x, weight = torch.ones(16, 256), torch.ones(64, 256)
x[::2] = -1
linear = Int8Linear(quantize_weight(weight))
y = linear(linear.take(Rows(x.clone())))
print(float((y.values * y.scale - x @ weight.T).abs().max()))
"""


@needs_packed
@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE", "DEFAULT"])
def test_no_instruction_set_overflows(isa):
    """Processors without VNNI add pairs in 16 bits; the largest sums there are come out right."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", EXTREME], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 1e-3, f"{isa}: off by {done.stdout.strip()} of 256"
