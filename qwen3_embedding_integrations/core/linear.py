"""One linear layer without bias on a CPU: float32, bfloat16 or int8 weights behind one call."""

from __future__ import annotations

import platform
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F


class Rows(NamedTuple):
    """Activations whose rows are still to be multiplied by a number each.

    A linear layer, a residual sum or a norm of its own can take the factor along; applying it
    would cost a pass over all values.
    """

    values: torch.Tensor  # (T, K) float32
    scale: torch.Tensor | None = None  # (T, 1) float32; None is 1


class Linear(Protocol):
    """Computes `x @ weight.T`; may overwrite the values of x."""

    def __call__(self, x: Rows) -> Rows: ...
    def opened(self) -> Linear:
        """Return what to call for many blocks of one forward."""
        ...


class PackedLinear:
    """Float32 or bfloat16 products on oneDNN's blocked weights.

    Packed once, where `F.linear` would read the plain layout at every call: 2 to 9 times as fast
    at 1-16 rows, and on AMD, where torch's float32 products are MKL's, 2.3 times at any number
    (torch 2.13, oneDNN 3.12).
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._dtype = weight.dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def __call__(self, x: Rows) -> Rows:
        values = x.values.to(self._dtype)
        y = torch.ops.mkldnn._linear_pointwise(values, self._weight, None, "none", [], "")
        return Rows(y.float(), x.scale)

    def opened(self) -> PackedLinear:
        return self


class WidenedLinear:
    """Float32 products of weights kept in a narrower dtype, or in a plain layout.

    Processors without fast bfloat16 arithmetic multiply float32 up to twice as fast, so bfloat16
    weights are widened, exactly, for each forward: half the memory at float32's speed.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Rows) -> Rows:
        return Rows(F.linear(x.values, self._weight.float()), x.scale)

    def opened(self) -> WidenedLinear:
        return WidenedLinear(self._weight.float())


class Int8Linear:
    """int8 weights, a scale per output; activations made int8 per row as they come.

    The product is exact in int32; what is lost is the rounding of both sides to 255 levels.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        """Take weight (N, K) int8 and scale (N,) float32: weight * scale is the true one."""
        # Symmetric rows: their own scale, -peak/127 … peak/127, stays outside the product.
        self._scale = scale / 127
        self._zero_points = torch.zeros(len(scale), dtype=torch.int64)
        self._weight = torch.ops.onednn.qlinear_prepack(weight, None)

    def __call__(self, x: Rows) -> Rows:
        values, scale = x
        peak = values.abs().amax(1, keepdim=True)
        # A row of zeros divides by zero; its scale of zero makes zeros of whatever comes out.
        levels = values.mul_(_LEVELS / peak).round_().to(torch.int8)
        # oneDNN's fast products take unsigned activations: -127 … 127 becomes 1 … 255.
        levels = levels.view(torch.uint8).bitwise_xor_(128)
        y = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, 128, self._weight, self._scale, self._zero_points,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return Rows(y, peak if scale is None else peak.mul_(scale))

    def opened(self) -> Int8Linear:
        return self


_LEVELS = torch.tensor(127.0)


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight (N, K) as int8 and the scale (N,) float32 of each output."""
    weight = weight.float()
    scale = weight.abs().amax(1).div_(127).clamp_min_(1e-12)
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def has_packed_products() -> bool:
    """Whether this build of torch multiplies through oneDNN on an x86 processor."""
    return torch.backends.mkldnn.is_available() and platform.machine() in {"x86_64", "AMD64"}
