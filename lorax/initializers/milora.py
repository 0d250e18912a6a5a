"""MiLoRA: train the minor singular triplets of the weight, freeze the principal ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.initializers.registry import register
from lorax.initializers.triplets import Triplets

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("milora")
@dataclass(frozen=True, kw_only=True)
class MiLoRA(Triplets):
    """B = U_-r sqrt(S_-r / eta), A = sqrt(S_-r / eta) V_-r^T, W_fz = W0 - eta B0 A0 (arXiv:2406.09044).

    U_-r, S_-r, V_-r are the last r of the k = min(m, n) triplets, so W_fz is the best rank-(k - r)
    approximation of W0. alpha = rank (eta = 1) as the authors run it; note that their LoRA baseline has
    eta = 2, so records and tables print eta. On a rank-deficient weight the minor triplets are zero, both
    factors start at zero and no gradient ever reaches them: that is an error here.
    """

    def __call__(self, probe: Probe) -> Factors:
        """Return the bottom r triplets, the singular values shared evenly between the factors.

        Raises:
            UserError: the weight is rank-deficient.
        """
        U, S, Vh = probe.bottom_svd(self.rank)
        if float(S[-1]) <= probe.rounding_level:
            raise UserError(
                f"layer {probe.name}: its weight is rank-deficient (singular value {float(S[-1]):.1e}, "
                f"bound {probe.rounding_level:.1e}); milora would start there at A = B = 0 and never train"
            )
        return self.factors(probe, U, S, Vh, sigma_min=float(S[-1]))
