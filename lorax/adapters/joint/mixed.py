"""MixedFactors: up-projections that all tasks share, mixed by a task's own weights around its own core (MTL-LoRA).

    Delta W_t = eta (sum_i p_i B_i) Lambda_t A        p = softmax(w_t / temperature)

Nothing depends on the input: a task's adapter is one product (B, M, A), B = sum_i p_i B_i, M = Lambda_t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters import core
from lorax.adapters.core import Core, Dense, Diagonal
from lorax.adapters.face import Share
from lorax.adapters.factors import Factors
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.errors import UserError

_TENSORS = ("B", "M", "w", "A")


@dataclass(frozen=True)
class MixedFactors:
    """The plan of one task."""

    B: Tensor
    """(N, m, r), shared by the tasks."""
    M: Tensor
    """Lambda_t: (r, r), or (r,), a diagonal."""
    w: Tensor
    """(N,), the task's logits of the up-projections."""
    A: Tensor
    """(r, n), shared by the tasks."""
    eta: float
    """The scale of the update."""
    temperature: float
    """Divides the logits."""

    shifts_base = False

    def check_module(self, name: str, module: nn.Module) -> None:
        """Check that the factors fit the module's weight."""
        N, _, r = self.B.shape
        if self.w.shape != (N,) or self.M.shape not in ((r, r), (r,)):
            shapes = f"w {tuple(self.w.shape)} and M {tuple(self.M.shape)}"
            raise UserError(f"{name}: {shapes} do not fit {N} up-projections of rank {r}")
        Factors(self.B[0], _core(self.M), self.A, self.eta, frozenset({"A", "B", "M"})).check_module(name, module)

    def count_trainable(self) -> int:
        """Return r n + N r m + r^2 (or r) + N."""
        return sum(getattr(self, name).numel() for name in _TENSORS)

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> MixedFactors:
        """Return the same plan in another dtype and place."""
        B, M, w, A = (getattr(self, name).to(device=device, dtype=dtype) for name in _TENSORS)
        return replace(self, B=B, M=M, w=w, A=A)

    def build(self, *, fold: bool = False, dropout: float = 0.0, share: Share | None = None) -> MixedAdapter:
        """Return the trainable module."""
        return MixedAdapter(self, dropout)

    @classmethod
    def restore(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MixedFactors:
        """Build the plan from `MixedAdapter.describe` and the saved tensors."""
        B, M, w, A = (tensors[name] for name in _TENSORS)
        return cls(B, M, w, A, float(described["eta"]), float(described["temperature"]))


class MixedAdapter(LayerAdapter):
    """One task's adapter at one layer, in plain operations."""

    eta: float

    def __init__(self, plan: MixedFactors, dropout: float):
        super().__init__(dropout)
        self.eta, self.temperature = float(plan.eta), float(plan.temperature)
        self.B, self.M = nn.Parameter(plan.B.detach().clone()), nn.Parameter(plan.M.detach().clone())
        self.w, self.A = nn.Parameter(plan.w.detach().clone()), nn.Parameter(plan.A.detach().clone())

    def mixed(self) -> Tensor:
        """Return sum_i p_i B_i, (m, r)."""
        p = torch.softmax(self.w / self.temperature, 0)
        return torch.tensordot(p, self.B, 1)

    def output(
        self, x: Tensor, base: Tensor, weight: Callable[[], Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return base + eta x A^T Lambda^T (sum_i p_i B_i)^T; the mixture is formed in the tensors' own precision."""
        x = x.to(base.dtype)
        if mask is not None:
            x = x * mask
        left = core.left_multiply(self.mixed(), _core(self.M))
        return base + self.eta * ((x @ self.A.to(x.dtype).mT) @ left.to(x.dtype).mT)

    def delta(self, weight: Callable[[], Tensor] | None = None) -> Tensor:
        """Return eta (sum_i p_i B_i) Lambda A, (m, n)."""
        return self.eta * (core.left_multiply(self.mixed(), _core(self.M)) @ self.A)

    def factors(self) -> Factors:
        """Return the task's one product (B, M, A)."""
        trained = frozenset({"A", "B", "M"})
        return Factors(self.mixed().detach(), _core(self.M.detach()), self.A.detach(), self.eta, trained)

    def describe(self) -> dict[str, Any]:
        """Return what `MixedFactors.restore` needs beside the tensors."""
        return {"plan": "mixed", "eta": self.eta, "temperature": self.temperature, "report": self.report}


def _core(M: Tensor) -> Core:
    return Dense(M) if M.ndim == 2 else Diagonal(M)
