"""SVF (Transformer-squared): a trained factor on every singular value of the weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Method, one_of
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.face import LayerPlan
    from lorax.probing.probe import Probe

PARAMS = ("direct", "sigmoid")


@register("svf")
@dataclass(frozen=True, kw_only=True)
class SVF(Method):
    """W' = U diag(S z) V^T = W0 + U diag(z - 1) S V^T, only z (k = min(m, n)) trained (arXiv:2501.06252); no rank.

    What is stored is d = z - 1, which starts at 0 between B = U and A = S V^T: the change of a singular value relative
    to itself. So a step of Adam is relative, and dL/dd_i = S_i u_i^T G v_i; SVFT plain is the same update with
    m_i = S_i d_i and absolute steps.

    Sides taken: z itself trains and nothing is normalised, as the paper writes it, on all linear layers. The authors'
    code is the pair `param=sigmoid normalise=true`, with `noise=0.01` and layers named "mlp" only: z = sigmoid(p),
    p = 0.1 + noise * N(0, 1), and W' = U diag(S z) V^T * sum(S) / sum(S z), so that the sum of singular values stays
    and one of k degrees of freedom has no effect. With its noise step 0 is not the base.
    """

    param: str = "direct"
    """direct: z = 1 + d | sigmoid: z = sigmoid(p), which needs normalise=true."""
    normalise: bool = False
    """Rescale W' so that the sum of its singular values stays that of W0."""
    noise: float = 0.0
    """Standard deviation of the trained vector at the start; above 0 step 0 is no longer exactly the base."""

    eta: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        one_of("param", self.param, PARAMS)
        number = isinstance(self.noise, int | float) and not isinstance(self.noise, bool)
        if not number or not math.isfinite(self.noise) or self.noise < 0:
            raise UserError(f"noise={self.noise}: a finite number of at least 0 is needed")
        if self.param == "sigmoid" and not self.normalise:
            raise UserError("param=sigmoid needs normalise=true: z stays below 1, so that no z is the base")

    @property
    def needs(self) -> frozenset[str]:
        """All of the weight's triplets."""
        return frozenset({"svd"})

    @property
    def starts_at_base(self) -> bool:
        """Not with noise."""
        return self.noise == 0

    def check(self, name: str, m: int, n: int) -> None:
        """Accept every shape."""

    def count(self, m: int, n: int) -> int:
        """Return min(m, n)."""
        return min(m, n)

    def __call__(self, probe: Probe) -> LayerPlan:
        """Return all singular vectors, frozen, around the trained vector."""
        import torch

        from lorax.adapters.core import Diagonal
        from lorax.adapters.factors import Factors
        from lorax.adapters.vectors.singular_values import SingularValues

        U, S, Vh = probe.full_svd()
        A = probe.shared("svf A", lambda: S[:, None] * Vh)
        report = probe.facts | {"sigma_1": float(S[0]), "sigma_min": float(S[-1])}
        start = torch.full((len(S),), 0.1 if self.param == "sigmoid" else 0.0, dtype=torch.float64)
        if self.noise:
            start += torch.empty_like(start).normal_(0.0, self.noise, generator=probe.generator)
        start = start.to(probe.device, probe.dtype)
        if self.normalise:
            return SingularValues(U, S, A, start, self.param == "sigmoid", report)
        trained = frozenset({"M"})
        return Factors(U, Diagonal(start), A, self.eta, trained, report=report, shared=frozenset({"A", "B"}))
