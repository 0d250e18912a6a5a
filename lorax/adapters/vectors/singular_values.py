"""SingularValues: a trained factor on every singular value, normalised so that their sum stays.

    W' = c U diag(S z) V^T      c = sum(S) / sum(S z),    z = 1 + p, or sigmoid(p)

Added to the base is U diag(c z - 1) S V^T, whose factor c z - 1 is formed without cancellation: it is exactly zero
where all z are equal, whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters.core import Diagonal
from lorax.adapters.face import Share
from lorax.adapters.factors import Factors
from lorax.adapters.layer_adapter import LayerAdapter


@dataclass(frozen=True)
class SingularValues:
    """The plan: frozen singular triplets of the weight, and the vector that trains."""

    U: Tensor
    """(m, k), left singular vectors."""
    S: Tensor
    """(k,), singular values."""
    A: Tensor
    """(k, n), S V^T."""
    p: Tensor
    """(k,), at step 0."""
    sigmoid: bool
    """z = sigmoid(p), else 1 + p."""
    report: dict[str, float] = field(default_factory=dict)
    """Facts about this layer for the record."""

    shifts_base = False

    def check_module(self, name: str, module: nn.Module) -> None:
        """Check that the triplets fit the module's weight."""
        self._factors(self.p).check_module(name, module)

    def count_trainable(self) -> int:
        """Return k."""
        return self.p.numel()

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> SingularValues:
        """Return the same plan in another dtype and place."""
        U, S, A, p = (tensor.to(device=device, dtype=dtype) for tensor in (self.U, self.S, self.A, self.p))
        return replace(self, U=U, S=S, A=A, p=p)

    def build(self, *, fold: bool = False, dropout: float = 0.0, share: Share | None = None) -> SingularValuesAdapter:
        """Return the trainable module."""
        return SingularValuesAdapter(self, dropout, share)

    def _factors(self, change: Tensor) -> Factors:
        return Factors(self.U, Diagonal(change), self.A, 1.0, frozenset({"M"}), report=self.report)

    @classmethod
    def restore(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SingularValues:
        """Build the plan from `SingularValuesAdapter.describe` and the saved tensors."""
        U, S, A, p = (tensors[name] for name in ("U", "S", "A", "p"))
        return cls(U, S, A, p, bool(described["sigmoid"]), dict(described["report"]))


class SingularValuesAdapter(LayerAdapter):
    """One run's vector at one layer."""

    eta = 1.0
    U: Tensor
    S: Tensor
    A: Tensor

    def __init__(self, plan: SingularValues, dropout: float, share: Share | None):
        super().__init__(dropout)
        self.sigmoid, self.report = plan.sigmoid, dict(plan.report)
        for name, tensor in (("U", plan.U), ("S", plan.S), ("A", plan.A)):
            self.register_buffer(name, share(name, tensor.detach()) if share else tensor.detach())
        self.p = nn.Parameter(plan.p.detach().clone())

    def change(self) -> Tensor:
        """Return c z - 1, (k,)."""
        z = torch.sigmoid(self.p) if self.sigmoid else 1 + self.p
        mean = z[0] + (self.S * (z - z[0])).sum() / self.S.sum()  # sum(S z) / sum(S) = 1 / c
        return (z - mean) / mean

    def output(
        self, x: Tensor, base: Tensor, weight: Callable[[], Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return base + x A^T diag(c z - 1) U^T."""
        x = x.to(base.dtype)
        if mask is not None:
            x = x * mask
        return base + ((x @ self.A.to(x.dtype).mT) * self.change().to(x.dtype)) @ self.U.to(x.dtype).mT

    def delta(self, weight: Callable[[], Tensor] | None = None) -> Tensor:
        """Return U diag(c z - 1) S V^T, (m, n)."""
        return (self.U * self.change()) @ self.A

    def factors(self) -> Factors:
        """Return the current values as factors around a diagonal core."""
        change = Diagonal(self.change().detach())
        return Factors(self.U, change, self.A, 1.0, frozenset({"M"}), report=dict(self.report))

    def describe(self) -> dict[str, Any]:
        """Return what `SingularValues.restore` needs beside the tensors."""
        return {"plan": "singular_values", "eta": self.eta, "sigmoid": self.sigmoid, "report": self.report}
