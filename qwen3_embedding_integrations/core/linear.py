"""One linear layer without bias: int8 and packed weights on a CPU, fp8 on CUDA, behind one call."""

from __future__ import annotations

import platform
from functools import cache
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

E4M3 = torch.float8_e4m3fn  # fp8 with three bits of fraction
E4M3_MAX = 448.0
SMALLEST_SCALE = 1e-30  # of a row of zeros: zero would make NaN of it
FP8_CAPABILITY = (8, 9)  # Ada


class Rows(NamedTuple):
    """Activations (T, K) whose rows are still to be multiplied by a number each.

    A linear layer, a residual sum or a norm of its own can take the factor along; applying it
    would cost a pass over all values.
    """

    values: torch.Tensor  # (T, K)
    scale: torch.Tensor | None = None  # (T, 1) float32; None is 1

    def part(self, rows: slice) -> Rows:
        """Return some of the rows, as views."""
        return Rows(self.values[rows], None if self.scale is None else self.scale[rows])

    @classmethod
    def join(cls, parts: list[Rows]) -> Rows:
        """Return the rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        scales = [part.scale for part in parts if part.scale is not None]
        values = torch.cat([part.values for part in parts])
        return cls(values, torch.cat(scales) if scales else None)


class Linear(Protocol):
    """Computes `x @ weight.T` in two steps: the first goes with what made x, few rows at a time."""

    def take(self, x: Rows) -> Rows:
        """Return x, float32, in the form the product reads; may overwrite its values."""
        ...

    def __call__(self, taken: Rows) -> Rows:
        """Return the product of what `take` returned, in float32."""
        ...

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

    def take(self, x: Rows) -> Rows:
        return Rows(x.values.to(self._dtype), x.scale)

    def __call__(self, taken: Rows) -> Rows:
        y = torch.ops.mkldnn._linear_pointwise(taken.values, self._weight, None, "none", [], "")
        return Rows(y.float(), taken.scale)

    def opened(self) -> PackedLinear:
        return self


class WidenedLinear:
    """Float32 products of weights kept in a narrower dtype, or in a plain layout.

    Processors without fast bfloat16 arithmetic multiply float32 up to twice as fast, so bfloat16
    weights are widened, exactly, for each forward: half the memory at float32's speed.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def take(self, x: Rows) -> Rows:
        return x

    def __call__(self, taken: Rows) -> Rows:
        return Rows(F.linear(taken.values, self._weight.float()), taken.scale)

    def opened(self) -> WidenedLinear:
        return WidenedLinear(self._weight.float())


class Int8Linear:
    """int8 weights, a scale per output; activations made int8 per row as they come.

    The product is exact in int32; what is lost is the rounding of both sides to 255 levels.
    """

    def __init__(self, weight: QuantizedWeight) -> None:
        levels = _activation_levels()
        self._levels = torch.tensor(float(levels))
        self._zero_point = levels + 1
        self._scale = weight.scale / levels
        self._zero_points = torch.zeros(len(weight.scale), dtype=torch.int64)
        self._weight = torch.ops.onednn.qlinear_prepack(weight.values.contiguous(), None)

    def take(self, x: Rows) -> Rows:
        values, scale = x
        peak = values.abs().amax(1, keepdim=True)
        # A row of zeros divides by zero; its scale of zero makes zeros of whatever comes out.
        levels = values.mul_(self._levels / peak).round_().to(torch.int8)
        # oneDNN's fast products take unsigned activations: -127 … 127 becomes 1 … 255.
        levels = levels.view(torch.uint8).add_(self._zero_point)
        return Rows(levels, peak if scale is None else peak.mul_(scale))

    def __call__(self, taken: Rows) -> Rows:
        y = int8_product(
            taken.values, self._zero_point, self._weight, self._scale, self._zero_points
        )
        return Rows(y, taken.scale)

    def opened(self) -> Int8Linear:
        return self


class QuantizedWeight(NamedTuple):
    """A weight in int8 or fp8: `values * scale` is the true one."""

    values: torch.Tensor  # (N, K) int8 or float8_e4m3fn
    scale: torch.Tensor  # (N,) float32

    def to_float(self) -> torch.Tensor:
        """Return the weight it stands for, (N, K) float32."""
        return self.values.float() * self.scale[:, None]


Weight = torch.Tensor | QuantizedWeight


def select_outputs(weight: Weight, rows: torch.Tensor) -> Weight:
    """Return the weight with its outputs in another order."""
    if isinstance(weight, QuantizedWeight):
        return QuantizedWeight(weight.values[rows], weight.scale[rows])
    return weight[rows]


def quantize_weight(weight: torch.Tensor) -> QuantizedWeight:
    """Return weight (N, K) rounded to 255 levels, a scale for each output."""
    weight = weight.float()
    scale = weight.abs().amax(1).div_(127).clamp_min_(1e-30)
    return QuantizedWeight((weight / scale[:, None]).round_().to(torch.int8), scale)


def to_e4m3(x: torch.Tensor) -> Rows:
    """Return the rows of x (N, K) in e4m3, each with the scale that makes 448 of its largest.

    A row with NaN or inf gets a scale that makes NaN of all its products.
    """
    x = x.float()
    scale = x.abs().amax(1, keepdim=True).div_(E4M3_MAX).clamp_min_(SMALLEST_SCALE)
    return Rows((x / scale).to(E4M3), scale)


def quantize_weight_fp8(weight: torch.Tensor) -> QuantizedWeight:
    """Return weight (N, K) in e4m3, a scale for each output."""
    values, scale = to_e4m3(weight)
    assert scale is not None
    return QuantizedWeight(values, scale.squeeze(1))


def product(x: Rows, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """Return x @ weight.T, (T, N) in `dtype`: an fp8 weight takes e4m3 rows, others plain ones."""
    if isinstance(weight, torch.Tensor):
        return F.linear(x.values, weight)
    # The same positional call from torch 2.6 to 2.15; the public F.scaled_mm came with 2.10.
    return torch.ops.aten._scaled_mm(
        x.values, weight.values.t(), x.scale, weight.scale[None], None, None, dtype, True
    )


def fp8_obstacle(device: torch.device, capability: tuple[int, int]) -> str | None:
    """Return why this device, of this CUDA capability, cannot multiply fp8; None where it can."""
    if capability < FP8_CAPABILITY:
        have, need = (".".join(map(str, one)) for one in (capability, FP8_CAPABILITY))
        return f"needs a card of compute capability {need} or newer, this one has {have}"
    weight = quantize_weight_fp8(torch.ones(16, 16, device=device))
    try:  # torch 2.6 knows Hopper alone: Ada came with 2.7, Blackwell later
        product(to_e4m3(torch.ones(16, 16, device=device)), weight, torch.bfloat16)
    except (RuntimeError, ValueError) as error:
        return f"needs a newer torch for this card, this is {torch.__version__} ({error})"
    return None


@cache
def _activation_levels() -> int:
    """Return how many levels an activation may have on each side of zero: 127, or 63.

    x86 processors without VNNI add two products in 16 bits, which 255 x 127 x 2 overflows in
    silence (oneDNN's documentation, "Nuances of int8 computations"); 127 x 127 x 2 fits. So this
    machine is asked, by the largest product there is.
    """
    x = torch.full((16, 64), 255, dtype=torch.uint8)
    weight = torch.full((16, 64), 127, dtype=torch.int8)
    y = int8_product(
        x, 128, torch.ops.onednn.qlinear_prepack(weight, None),
        torch.ones(16), torch.zeros(16, dtype=torch.int64),
    )  # fmt: skip
    return 127 if bool((y == 127 * 127 * 64).all()) else 63


def int8_product(
    x: torch.Tensor,
    zero_point: int,
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_points: torch.Tensor,
) -> torch.Tensor:
    """Return (x - zero_point) @ weight.T * scale, (T, N) float32.

    x (T, K) uint8, the weight as `qlinear_prepack` made it of (N, K) int8, scale (N,) float32,
    zero_points (N,) int64 zeros.
    """
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero_point, weight, scale, zero_points,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip


def has_packed_products() -> bool:
    """Whether this build of torch multiplies through oneDNN on an x86 processor."""
    return torch.backends.mkldnn.is_available() and platform.machine() in {"x86_64", "AMD64"}
