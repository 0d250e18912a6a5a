"""A random orthogonal start: two factors that are both non-zero, and whose product is zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.initializers.base import Ranked
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("orthogonal")
@dataclass(frozen=True, kw_only=True)
class Orthogonal(Ranked):
    """A = (G_A Q_1)^T / 10, B = G_B Q_2 / 10, Q_1 and Q_2 the even and the odd rows of a random orthogonal r x r Q.

    G_A (n x r/2) and G_B (m x r/2) are Gaussian. B A = G_B Q_2 Q_1^T G_A^T / 100 = 0, as the rows of Q are orthonormal:
    step 0 is the base with no weight changed, and both factors have a gradient from the first step on.
    Source: PEFT's `init_lora_weights="orthogonal"` (datta0.github.io/posts/rethink-lora-init).

    Sides taken: an odd rank is served too (Q_1 has one row more), which PEFT refuses. The product is zero up to
    rounding only, so the differences to it are what is added, as for recentred methods: step 0 is the base bit for
    bit in every dtype, where PEFT's is off by the rounding of A and B.
    """

    def __call__(self, probe: Probe) -> Factors:
        """Return both factors, drawn from the layer's own generator in float64."""
        import torch

        from lorax.adapters.core import Identity
        from lorax.adapters.factors import Factors

        (m, n), r = probe.shape, self.rank

        def normal(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.float64).normal_(generator=probe.generator)

        Q = torch.linalg.qr(normal(r, r)).Q
        first, second = Q[0::2], Q[1::2]
        A, B = (normal(n, len(first)) @ first).mT / 10, normal(m, len(second)) @ second / 10
        return Factors(
            B=B.to(probe.device, probe.dtype),
            M=Identity(),
            A=A.contiguous().to(probe.device, probe.dtype),
            eta=self.eta,
            trainable=frozenset({"A", "B"}),
            shifts_base=True,
        )
