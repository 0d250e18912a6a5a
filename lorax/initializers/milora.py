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
    eta = 2, so records and tables print eta. On a rank-deficient weight the minor triplets are zero, or what
    rounding made of zero: both factors start there and hardly a gradient reaches them. That is an error here; what
    rounding can make of zero depends on the dtype of the weight (`lorax.probing.rounding`).
    """

    def __call__(self, probe: Probe) -> Factors:
        """Return the bottom r triplets, the singular values shared evenly between the factors.

        Raises:
            UserError: the weight is rank-deficient, up to the rounding of its dtype.
        """
        U, S, Vh = triplets = probe.bottom_svd(self.rank)
        value, bound = float(S[-1]), probe.zero_level
        if value > bound:
            value, bound = float(S[0]), probe.noise_level(triplets)
        if value <= bound:
            dtype = str(probe.stored_dtype).removeprefix("torch.")
            raise UserError(
                f"layer {probe.name}: its weight is rank-deficient (singular value {value:.1e}; rounding to {dtype} "
                f"makes up to {bound:.1e} of zero); milora would start at rounding errors there and hardly train: "
                "leave the layer out of targets, or take pissa or lora"
            )
        return self.factors(probe, U, S, Vh, sigma_min=float(S[-1]))
