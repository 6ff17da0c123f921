"""Each fused operation against its plain twin: in Triton's interpreter, or on the card if one is.

Triton's interpreter (3.2 to 3.9) differs from a card in two roundings, which the tolerances know:
it cuts to bfloat16 where a card rounds, and it loses the carry of a value that rounds up to a power
of two in e4m3.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from qwen3_embedding_integrations.core import kernels
from qwen3_embedding_integrations.core.dense import choose_operations
from qwen3_embedding_integrations.core.linear import E4M3, Rows, product, quantize_weight_fp8

triton_kernels = pytest.importorskip(
    "qwen3_embedding_integrations.core.triton_kernels", reason="Triton is for Linux alone"
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One unit in the last place: what stands between rounding once, and twice or by cutting.
STEP = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SIZES = [(1, 256), (3, 100), (7, 1024), (2, 1500)]


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def weights(width: int, dtype: torch.dtype) -> torch.Tensor:
    return 1 + numbers(width, dtype=dtype, seed=1) / 4


def part_of_wider(x: torch.Tensor) -> torch.Tensor:
    """Return the same values as columns of a wider tensor."""
    wide = torch.full((len(x), x.shape[1] + 13), float("nan"), dtype=x.dtype, device=x.device)
    wide[:, 5:-8] = x
    return wide[:, 5:-8]


def assert_same(ours: torch.Tensor, expected: torch.Tensor, what: str, *, steps: int = 2) -> None:
    """Fail unless all values agree to some steps of their dtype, or of the mean's below it."""
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    apart = (ours.float() - expected.float()).abs()
    size = expected.float().abs().clamp_min(expected.float().abs().mean())
    worst = float((apart / size).max()) / STEP[expected.dtype]
    assert worst <= steps, f"{what}: {worst:.1f} steps apart"


def assert_same_rows(ours: Rows, expected: Rows, what: str) -> None:
    """Fail unless rounded rows have the same scales and values, but for a neighbouring level."""
    assert ours.scale is not None
    assert expected.scale is not None
    torch.testing.assert_close(ours.scale, expected.scale, rtol=2e-5, atol=0)
    values, wanted = ours.values.float(), expected.values.float()
    is_power = wanted.abs().log2().frac() == 0
    sound = ~is_power if DEVICE.type == "cpu" else torch.ones_like(is_power)
    apart = (values - wanted).abs() > 1e-6
    neighbours = (values - wanted).abs() <= wanted.abs() / 8 + 2**-9
    assert (neighbours | ~sound).all(), f"{what}: more than one level apart"
    share = float((apart & sound).float().mean())
    assert share <= 0.01, f"{what}: {share:.2%} of the values on another level"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "width"), SIZES)
def test_add_norm_is_its_twin(dtype, num_rows, width):
    """The sum and its norm agree with the plain ones, whole or as columns of something wider."""
    x, weight = numbers(num_rows, width, dtype=dtype, seed=2), weights(width, dtype)
    for added in (None, x, part_of_wider(x)):
        residuals = [numbers(num_rows, width, dtype=dtype) for _ in range(2)]
        results = [
            room.add_norm(added, residual, weight, EPS, dtype, 4.0).values
            for room, residual in zip((triton_kernels, kernels), residuals, strict=True)
        ]
        assert_same(*residuals, what="residual", steps=1)
        assert_same(*results, what="norm")


@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_wide_residual_gets_narrow_rows(num_rows):
    """A float32 residual takes float16's sum without loss, and its norm comes in float16."""
    x, weight = numbers(num_rows, 320, dtype=torch.float16, seed=3), weights(320, torch.float16)
    residual = numbers(num_rows, 320, dtype=torch.float32) * 1e5  # more than float16 can hold
    expected = residual + 64 * x.float()
    y = triton_kernels.add_norm(x, residual, weight, EPS, torch.float16, 64.0)
    assert_same(residual, expected, "residual")
    normed = F.rms_norm(expected, (320,), weight.float(), EPS).half()
    assert_same(y.values, normed, "norm")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_rows", "num_heads", "num_kv_heads", "head_dim"),
    [(1, 16, 8, 128), (7, 4, 2, 64), (3, 5, 1, 48)],
)
def test_qk_norm_rope_is_its_twin(dtype, num_rows, num_heads, num_kv_heads, head_dim):
    """Queries and keys agree with the plain ones, at any position; values are left as they are."""
    width = (num_heads + 2 * num_kv_heads) * head_dim
    positions = torch.tensor([0, 1, 17, 511, 4095, 8191, 32767], device=DEVICE)[-num_rows:]
    angles = torch.cat(kernels.rotary_angles(positions, head_dim, 1e6), dim=1)
    norms = weights(head_dim, dtype), weights(head_dim, dtype).flip(0)
    plain = numbers(num_rows, width, dtype=dtype)
    for qkv in (plain.clone(), part_of_wider(plain)):
        ours = triton_kernels.qk_norm_rope(qkv, angles, *norms, num_kv_heads, EPS)
        wide = [norm.float() for norm in norms]
        expected = kernels.qk_norm_rope(plain.float(), angles, *wide, num_kv_heads, EPS)
        assert_same(ours.q, expected.q.to(dtype), "queries")
        assert_same(ours.k, expected.k.to(dtype), "keys")
        assert torch.equal(ours.v, expected.v.to(dtype))


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # numpy's, interpreting
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "width"), SIZES)
def test_swiglu_is_its_twin(dtype, num_rows, width):
    """silu(gate) * up agrees with the plain one; a huge gate overflows nowhere on the way."""
    gate_up = numbers(num_rows, 2 * width, dtype=dtype) * 3
    gate_up[0, :2] = torch.tensor([-300.0, 300.0])
    for form in (gate_up.clone(), part_of_wider(gate_up)):
        ours = triton_kernels.swiglu(form, dtype).values
        assert_same(ours, kernels.swiglu(gate_up.float().clone(), dtype).values, "swiglu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "width"), SIZES)
def test_rounded_rows_are_their_twins(dtype, num_rows, width):
    """Norm, SwiGLU and plain rows round to e4m3 as their twins do, with the same scales."""
    x, weight = numbers(num_rows, width, dtype=dtype, seed=4), weights(width, dtype)
    gate_up = numbers(num_rows, 2 * width, dtype=dtype, seed=5)
    ours, expected = (
        {
            "norm": room.add_norm(None, x.clone(), weight, EPS, E4M3),
            "swiglu": room.swiglu(gate_up.clone(), E4M3),
            "rows": room.to_rows(x, E4M3),
            "part": room.to_rows(part_of_wider(x), E4M3),
        }
        for room in (triton_kernels, kernels)
    )
    for name, rows in ours.items():
        assert_same_rows(rows, expected[name], name)


def test_rows_that_need_no_rounding_are_as_they_were():
    """Asked for the dtype they have, rows come back without a copy."""
    x = numbers(3, 64, dtype=torch.bfloat16)
    for room in (triton_kernels, kernels):
        rows = room.to_rows(x, torch.bfloat16)
        assert rows.values is x
        assert rows.scale is None


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, interpreting
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_nan_passes_as_a_number(bad):
    """NaN or inf in a row makes all its fp8 products NaN; zeros beside it stay zeros."""
    x = numbers(4, 64, dtype=torch.bfloat16)
    x[1, 7], x[2] = bad, 0
    gate_up = torch.cat([torch.ones_like(x), x], dim=1)
    ones = torch.ones(64, device=DEVICE)
    weight = quantize_weight_fp8(numbers(32, 64, dtype=torch.float32))
    for room in (triton_kernels, kernels):
        rounded = {
            "norm": room.add_norm(None, x.clone(), ones, EPS, E4M3),
            "swiglu": room.swiglu(gate_up.clone(), E4M3),
            "rows": room.to_rows(x, E4M3),
        }
        for name, rows in rounded.items():
            y = product(rows, weight, torch.bfloat16)
            assert not y[1].isfinite().any(), f"{room.__name__} {name}"
            assert y[[0, 3]].isfinite().all(), f"{room.__name__} {name}"
            assert not y[2].any(), f"{room.__name__} {name}"


@pytest.mark.parametrize("capability", [75, 80, 89, 90])
def test_every_kernel_compiles(capability, tmp_path):
    """For every card from Turing to Hopper the kernels compile, and spill no register.

    Where rows are rounded, NaN is kept by an instruction of its own, which nothing interprets.
    """
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.core.compile_kernels", str(capability)],
        env=env | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    usage = json.loads(done.stdout)
    rounding = {name: one["max.NaN"] for name, one in usage.items() if "fp8" in name}
    assert bool(rounding) == (capability >= 89)
    assert all(rounding.values())
    spilled = {name: one["STACK"] for name, one in usage.items() if one["STACK"]}
    assert not spilled


def test_a_processor_never_imports_triton():
    """Loading a model and encoding on a CPU leaves Triton alone, so it need not be there."""
    code = """
import sys
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
with Qwen3Encoder(EncoderConfig(model="tiny", device="cpu")) as encoder:
    encoder.encode_documents(["x"])
print("triton" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there Triton runs")
def test_where_triton_does_not_run_plain_functions_do():
    """The reason is part of what is logged: here, that this torch has no CUDA at all."""
    operations, reason = choose_operations(torch.device("cuda"))
    assert operations is kernels
    assert reason.startswith("plain (Triton does not run: ")
    assert "CUDA" in reason
    assert choose_operations(torch.device("mps")) == (kernels, "plain (mps)")
