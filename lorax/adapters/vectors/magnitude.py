"""Magnitude: low-rank factors on the directions of the weight's rows, and a trained length of each row (DoRA).

W' = diag(s) (W0 + eta B A)        s = mag / ||W0 + eta B A||_row, the norm a constant to the gradient
y  = base + (s - 1) x W0^T + s eta x A^T B^T
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters.core import Identity
from lorax.adapters.face import Share
from lorax.adapters.factors import Factors
from lorax.adapters.layer_adapter import LayerAdapter


@dataclass(frozen=True)
class Magnitude:
    """The plan: LoRA's factors, and the lengths of the rows."""

    B: Tensor
    """(m, r)"""
    A: Tensor
    """(r, n)"""
    magnitude: Tensor
    """(m,), at step 0."""
    squares: Tensor
    """(m,), ||W0||^2 by row, frozen."""
    eta: float
    """The scale of B A."""
    has_bias: bool
    """Whether the layer's own output is more than x W0^T, which is then computed once more."""

    shifts_base = False

    def check_module(self, name: str, module: nn.Module) -> None:
        """Check that the factors fit the module's weight."""
        trained = frozenset({"A", "B"})
        Factors(self.B, Identity(), self.A, self.eta, trained).check_module(name, module)

    def count_trainable(self) -> int:
        """Return r (m + n) + m."""
        return self.B.numel() + self.A.numel() + self.magnitude.numel()

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Magnitude:
        """Return the same plan in another dtype and place."""
        tensors = (self.B, self.A, self.magnitude, self.squares)
        B, A, magnitude, squares = (tensor.to(device=device, dtype=dtype) for tensor in tensors)
        return replace(self, B=B, A=A, magnitude=magnitude, squares=squares)

    def build(self, *, fold: bool = False, dropout: float = 0.0, share: Share | None = None) -> MagnitudeAdapter:
        """Return the trainable module."""
        return MagnitudeAdapter(self, dropout)

    @classmethod
    def restore(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Magnitude:
        """Build the plan from `MagnitudeAdapter.describe` and the saved tensors."""
        B, A, magnitude, squares = (tensors[name] for name in ("B", "A", "magnitude", "squares"))
        return cls(B, A, magnitude, squares, described["eta"], bool(described["has_bias"]))


class MagnitudeAdapter(LayerAdapter):
    """One run's factors and lengths at one layer."""

    eta: float
    squares: Tensor

    def __init__(self, plan: Magnitude, dropout: float):
        super().__init__(dropout)
        self.eta, self.has_bias = float(plan.eta), plan.has_bias
        self.B = nn.Parameter(plan.B.detach().clone())
        self.A = nn.Parameter(plan.A.detach().clone())
        self.magnitude = nn.Parameter(plan.magnitude.detach().clone())
        self.register_buffer("squares", plan.squares.detach().clone())

    def scales(self, weight: Callable[[], Tensor]) -> Tensor:
        """Return s = mag / ||W0 + eta B A||_row, (m,); exactly 1 at step 0."""
        with torch.no_grad(), torch.autocast(self.A.device.type, enabled=False):
            B, A = self.B, self.A
            cross = ((weight().to(A.dtype) @ A.mT) * B).sum(1)
            own = ((B @ (A @ A.mT)) * B).sum(1)
            norms = (self.squares + self.eta * (2 * cross + self.eta * own)).sqrt()
        return self.magnitude / norms

    def output(
        self, x: Tensor, base: Tensor, weight: Callable[[], Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return base + (s - 1) x W0^T + s eta x A^T B^T, in the dtype of `base`."""
        weight, x, dtype = _given(weight), x.to(base.dtype), base.dtype
        s = self.scales(weight)
        plain = x @ weight().to(dtype).mT if self.has_bias else base
        low = ((x if mask is None else x * mask) @ self.A.to(dtype).mT) @ self.B.to(dtype).mT
        return base + (s - 1).to(dtype) * plain + (self.eta * s).to(dtype) * low

    def delta(self, weight: Callable[[], Tensor] | None = None) -> Tensor:
        """Return (s - 1) W0 + s eta B A, (m, n)."""
        weight = _given(weight)
        s = self.scales(weight)[:, None]
        return (s - 1) * weight().to(self.A.dtype) + self.eta * s * (self.B @ self.A)

    def describe(self) -> dict[str, Any]:
        """Return what `Magnitude.restore` needs beside the tensors."""
        return {"plan": "magnitude", "eta": self.eta, "has_bias": self.has_bias, "report": self.report}


def _given(weight: Callable[[], Tensor] | None) -> Callable[[], Tensor]:
    if weight is None:
        raise TypeError("row lengths need the layer's weight")
    return weight
