"""OLoRA: factors from a QR decomposition of the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.initializers.base import Ranked
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("olora")
@dataclass(frozen=True, kw_only=True)
class OLoRA(Ranked):
    """B = Q_r / sqrt(eta), A = R_r / sqrt(eta), W_fz = W0 - eta B0 A0, with W0 = Q R (arXiv:2406.01775).

    Q_r is the first r columns of Q, R_r the first r rows of R, so eta B0 A0 = Q_r Q_r^T W0 whatever eta is: the part
    of W0 in the span of its first r columns. The order of the inputs matters; nothing is pivoted.

    Sides taken: the factors are divided by sqrt(eta), where PEFT takes Q_r and R_r themselves and subtracts
    eta Q_r R_r; alpha = rank, hence eta = 1, is the default, and there both agree. R has a diagonal of at least 0,
    which fixes the signs; factors in float32, computed in float64.
    """

    default_alpha: ClassVar[float | None] = None

    @property
    def needs(self) -> frozenset[str]:
        """The weight."""
        return frozenset({"weight"})

    @property
    def lr_factor(self) -> float:
        """1 / sqrt(eta): the factors' norms fall with sqrt(eta), as PiSSA's."""
        return float(self.eta**-0.5)

    def __call__(self, probe: Probe) -> Factors:
        """Return the first r columns of Q and rows of R."""
        import torch

        from lorax.adapters.core import Identity
        from lorax.adapters.factors import Factors

        W = probe.weight.cpu() if probe.device.type == "mps" else probe.weight
        W, r = W.double(), self.rank
        Q, corner = torch.linalg.qr(W[:, :r])  # the first r columns of Q depend on those of W alone
        signs = torch.where(corner.diagonal() < 0, -1.0, 1.0).to(Q)
        Q, corner = Q * signs, signs[:, None] * corner
        R = torch.cat([corner, Q.mT @ W[:, r:]], dim=1)
        root = self.eta**0.5
        captured = float(R.square().sum() / probe.energy) if probe.energy else 0.0
        return Factors(
            B=(Q / root).to(probe.device, probe.dtype),
            M=Identity(),
            A=(R / root).to(probe.device, probe.dtype),
            eta=self.eta,
            trainable=frozenset({"A", "B"}),
            shifts_base=True,
            report={"captured": captured},
        )
