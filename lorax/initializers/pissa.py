"""PiSSA: train the principal singular triplets of the weight, freeze the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.initializers.base import one_of
from lorax.initializers.registry import register
from lorax.initializers.triplets import Triplets

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("pissa")
@dataclass(frozen=True, kw_only=True)
class PiSSA(Triplets):
    """B = U_r sqrt(S_r / eta), A = sqrt(S_r / eta) V_r^T, W_fz = W0 - eta B0 A0 (arXiv:2404.02948).

    eta B0 A0 is the best rank-r approximation of W0 (Eckart-Young) whatever eta is; alpha = rank, hence
    eta = 1, is the paper's. Sides taken: factors in fp32 (the authors' scripts run in bf16); the
    randomised SVD oversamples and iterates until its subspace is right to a sine of 1e-2, where
    `pissa_niter_16` of PEFT, without oversampling, ends at 0.95 on real weights.
    """

    svd: str = "exact"
    """exact | randomised (block Krylov, seeded; its sine bound is in the report)."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        one_of("svd", self.svd, ("exact", "randomised"))

    def __call__(self, probe: Probe) -> Factors:
        """Return the top r triplets, the singular values shared evenly between the factors."""
        U, S, Vh = probe.top_svd(self.rank, randomised=self.svd == "randomised")
        if float(S[-1]) <= probe.rounding_level:
            raise UserError(
                f"layer {probe.name}: pissa rank={self.rank}, but singular value {self.rank} of its weight "
                f"is {float(S[-1]):.1e}: that direction would start at zero and never train; lower the rank"
            )
        return self.factors(probe, U, S, Vh, sigma_1=float(S[0]), sigma_r=float(S[-1]))
