"""LoRA-XS: a small trained core between frozen singular factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Ranked
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("lora_xs")
@dataclass(frozen=True, kw_only=True)
class LoRAXS(Ranked):
    """Delta W = eta U_r M S_r V_r^T, only M (r x r) trained (arXiv:2405.17604); r^2 values a layer.

    The singular values sit on the input-side factor A = S_r V_r^T, as in the paper (which writes row
    vectors). Side taken: M starts at 0, so that step 0 is exactly the base, where the authors draw
    N(0, 1e-5^2); dL/dM = eta U_r^T G V_r S_r is not zero, so M = 0 trains. `noise=1e-5` is theirs.
    alpha = rank (eta = 1) as in their mathematics runs; their GLUE scripts fix alpha = 16 for all ranks.
    """

    noise: float = 0.0
    """Standard deviation of the core at the start; above 0 step 0 is no longer exactly the base."""
    default_alpha: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        number = isinstance(self.noise, int | float) and not isinstance(self.noise, bool)
        if not number or not math.isfinite(self.noise) or self.noise < 0:
            raise UserError(f"noise={self.noise}: a finite number of at least 0 is needed")

    @property
    def needs(self) -> frozenset[str]:
        """The weight's top triplets."""
        return frozenset({"svd"})

    @property
    def starts_at_base(self) -> bool:
        """Not with noise in the core."""
        return self.noise == 0

    def count(self, m: int, n: int) -> int:
        """Return r^2."""
        return self.rank**2

    def __call__(self, probe: Probe) -> Factors:
        """Return frozen B = U_r and A = S_r V_r^T around a trained dense core."""
        import torch

        from lorax.adapters.core import Dense
        from lorax.adapters.factors import Factors

        r = self.rank
        U, S, Vh = probe.top_svd(r)
        if float(S[-1]) <= probe.rounding_level:
            raise UserError(
                f"layer {probe.name}: lora_xs rank={r}, but singular value {r} of its weight is "
                f"{float(S[-1]):.1e}: that column of the core would never train; lower the rank"
            )
        facts = {"captured": float((S.double() ** 2).sum() / probe.energy), "sigma_1": float(S[0])}
        core = torch.zeros(r, r, dtype=torch.float64)
        if self.noise:
            core.normal_(0.0, self.noise, generator=probe.generator)
        return Factors(
            B=probe.shared(("lora_xs B", r), lambda: U),
            M=Dense(core.to(probe.device, probe.dtype)),
            A=probe.shared(("lora_xs A", r), lambda: S[:, None] * Vh),
            eta=self.eta,
            trainable=frozenset({"M"}),
            report=probe.facts | facts,
            shared=frozenset({"A", "B"}),
        )
