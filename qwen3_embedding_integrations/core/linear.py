"""One linear layer without bias: weights in one of the supported forms behind one call."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Linear:
    """Computes `x @ weight.T`.

    `weight` may be narrower than `x`: bfloat16 weights under float32 activations. Processors
    without fast bfloat16 arithmetic multiply float32 up to twice as fast, so the weights are then
    widened, exactly, for each forward: half the memory at float32's speed and better precision.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight  # (outputs, inputs)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (T, outputs) of x (T, inputs), in x's dtype."""
        if x.dtype == self.weight.dtype:
            return F.linear(x, self.weight)
        return F.linear(x, self.weight.to(x.dtype))
