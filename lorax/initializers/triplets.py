"""Factors made of singular triplets of the weight: what methods that train the largest or smallest ones share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.initializers.base import Ranked

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@dataclass(frozen=True, kw_only=True)
class Triplets(Ranked):
    """B = U sqrt(S / eta), A = sqrt(S / eta) V^T, W_fz = W0 - eta B0 A0, for r triplets (U, S, V) of W0."""

    default_alpha: ClassVar[float | None] = None

    @property
    def needs(self) -> frozenset[str]:
        """The weight's triplets."""
        return frozenset({"svd"})

    @property
    def lr_factor(self) -> float:
        """1 / sqrt(eta): the factors' norms fall with sqrt(eta), a step moves W' by lr sqrt(eta S)."""
        return float(self.eta**-0.5)

    def factors(self, probe: Probe, U: Tensor, S: Tensor, Vh: Tensor, **facts: float) -> Factors:
        """Return recentred factors that share the singular values evenly.

        Args:
            probe: of the layer.
            U: (m, r).
            S: (r,), above 0.
            Vh: (r, n).
            **facts: for the record, beside `captured`, the share of ||W0||_F^2 in these triplets.
        """
        from lorax.adapters.core import Identity
        from lorax.adapters.factors import Factors

        root = (S / self.eta).sqrt()
        energy = float((S.double() ** 2).sum() / probe.energy)
        return Factors(
            B=U * root,
            M=Identity(),
            A=root[:, None] * Vh,
            eta=self.eta,
            trainable=frozenset({"A", "B"}),
            shifts_base=True,
            report=probe.facts | {"captured": energy} | facts,
        )
