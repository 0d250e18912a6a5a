"""LoRA-One: start at one step of rank-r gradient descent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.initializers.base import Ranked, positive
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("lora_one")
@dataclass(frozen=True, kw_only=True)
class LoRAOne(Ranked):
    """B = -U_r sqrt(S_r / S_1) / sqrt(gamma), A = sqrt(S_r / S_1) V_r^T / sqrt(gamma), W_fz = W0 (arXiv:2502.01235).

    G = U S V^T is the gradient on the calibration sample. Nothing is subtracted, so
    W'(step 0) = W0 - eta / (gamma S_1) G_r, one step of gradient descent truncated to rank r: by design not the base.
    cos(W'(step 0) - W0, -G) = ||S_1..r|| / ||S||, and the start does not depend on the scale of the loss.

    Sides taken: sqrt(S / S_1), as in the authors' code, where their README has S; eta = alpha / sqrt r, their setting;
    an exact decomposition (theirs: a randomised one of rank 512).
    """

    scaling: str = "rslora"
    """standard | rslora; the paper's is rslora."""
    gamma: float | None = None
    """Divides the start, 1 / gamma the first step's size; None: 128."""

    def __post_init__(self) -> None:
        """Check the values and put the default gamma in place."""
        super().__post_init__()
        if self.gamma is None:
            object.__setattr__(self, "gamma", 128.0)
        positive("gamma", self.gamma)

    @property
    def needs(self) -> frozenset[str]:
        """The gradient."""
        return frozenset({"gradient"})

    @property
    def starts_at_base(self) -> bool:
        """No: it starts one step away."""
        return False

    @property
    def lr_factor(self) -> float:
        """eta_default / eta * sqrt(gamma / 128): a step moves W' by about lr eta ||A||, ||A|| by 1 / sqrt(gamma)."""
        return float(self.default_alpha or 0.0) / math.sqrt(self.rank) / self.eta * math.sqrt(self._gamma / 128.0)

    @property
    def _gamma(self) -> float:
        return self.gamma or 0.0

    def __call__(self, probe: Probe) -> Factors:
        """Return the top r gradient directions, downhill."""
        from lorax.adapters.core import Identity
        from lorax.adapters.factors import Factors

        U, S, Vh = probe.gradient_svd(self.rank)
        if float(S[0]) == 0.0:
            raise UserError(f"layer {probe.name}: its gradient is 0 on the calibration data; no direction for lora_one")
        root = (S / S[0] / self._gamma).sqrt()
        facts = {"gradient_sigma_1": float(S[0]), "start": self.eta / self._gamma}
        return Factors(
            B=-U * root,
            M=Identity(),
            A=root[:, None] * Vh,
            eta=self.eta,
            trainable=frozenset({"A", "B"}),
            report=probe.facts | facts,
        )
