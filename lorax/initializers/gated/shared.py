"""What methods with gated experts have in common: their fields, checks and rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Ranked, positive

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.adapters.face import TrainingRule
    from lorax.adapters.gated.experts import GatedExperts
    from lorax.probing.probe import Probe


@dataclass(frozen=True, kw_only=True)
class Gated(Ranked):
    """N experts of rank r behind a router: y = base + eta sum_i g_i(x) B_i A_i x."""

    experts: int = 4
    """N."""
    top_k: int | None = None
    """Experts that a token uses, by their weights, which then are divided by their sum; None: all."""
    temperature: float = 1.0
    """tau of g(x) = softmax(W_r x / tau)."""
    balance: float = 0.0
    """Weight of the load-balance penalty; MixLoRA's is 0.001."""

    changes_weight: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if isinstance(self.experts, bool) or not isinstance(self.experts, int) or self.experts < 1:
            raise UserError(f"experts={self.experts}: a positive whole number is needed")
        k = self.top_k
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.experts):
            raise UserError(f"top_k={k}: a whole number from 1 to experts={self.experts} is needed, or null for all")
        if k == 1 < self.experts:
            raise UserError("top_k=1: its one weight is always 1, so that the router would not learn; 2 or more")
        positive("temperature", self.temperature)
        if not isinstance(self.balance, int | float) or isinstance(self.balance, bool) or not math.isfinite(
            self.balance
        ) or self.balance < 0:  # fmt: skip
            raise UserError(f"balance={self.balance}: a finite number of at least 0 is needed")

    def rule(self) -> TrainingRule | None:
        """Return the penalty on the router's balance, where it has a weight."""
        if not self.balance or self.experts == 1:
            return None
        from lorax.adapters.gated.balance import Balance

        return Balance(self.balance)

    def _plan(self, probe: Probe, shares_A: bool, router: Tensor) -> GatedExperts:
        """Return the experts at B = 0, each A as LoRA's, drawn after the router."""
        import torch

        from lorax.adapters.gated.experts import GatedExperts

        (m, n), N = probe.shape, self.experts
        A = torch.empty(1 if shares_A else N, self.rank, n, dtype=torch.float64)
        A.uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=probe.generator)
        B = torch.zeros(N, m, self.rank, device=probe.device, dtype=probe.dtype)
        k = None if self.top_k == N else self.top_k
        A, router = A.to(probe.device, probe.dtype), router.to(probe.device, probe.dtype)
        return GatedExperts(B, A, router, self.eta, k, self.temperature)
