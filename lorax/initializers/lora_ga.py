"""LoRA-GA: factors from the gradient, so that the first step follows full fine-tuning."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.initializers.base import Ranked, one_of, positive
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe

DIRECTIONS = ("ArB2r", "A2rBr", "ArBr", "random")
RULES = ("forward", "backward", "absolute", "weight_svd")


@register("lora_ga")
@dataclass(frozen=True, kw_only=True)
class LoRAGA(Ranked):
    """B = c U_G[:, IB], A = c V_G[:, IA]^T on W_fz = W0 - eta B0 A0 (arXiv:2407.05000).

    G = U S V^T is the gradient on a calibration sample; IA and IB are disjoint and together the top
    2r indices. One SGD step then gives Delta W_1 = -lr zeta_layer G_2r + O(lr^2), G_2r the best
    rank-2r approximation of G and zeta_layer = eta^2 c^2: no rank-2r update has a larger cosine.

    The scale: `zeta_rule=forward` takes zeta_layer = zeta sqrt(m) / r (the output RMS of the adapter
    is then zeta / alpha under rsLoRA scaling, at any m, n, r), `backward` zeta sqrt(n) / r,
    `absolute` zeta itself (zeta=1: one step of truncated full fine-tuning), `weight_svd`
    c = mean_{i<r} sqrt(sigma_i(W0) / eta). `gamma` instead of zeta is the paper's own knob,
    c = m^(1/4) / sqrt(gamma), i.e. zeta = eta^2 r / gamma. The first step does not depend on alpha
    at fixed zeta; it does at fixed gamma.

    Sides taken, where paper and code disagree: orthonormal factors, not B times the singular values
    as PEFT 0.21 has it (its first step reaches only the rank-r optimum); `random` draws disjoint sets
    (PEFT uses one set twice); eta = alpha / sqrt r by default (the authors' examples leave it at
    alpha / r); sqrt(gamma) as in algorithm and code, not gamma as in the text; weight_svd as in the
    authors' code; the gradient is accumulated in fp32, token-weighted, without dropout.
    """

    scaling: str = "rslora"
    """standard | rslora; the paper's is rslora."""
    zeta: float | None = None
    """Factor between the first adapted SGD step and the full one, before the rule; None: 16."""
    zeta_rule: str = "forward"
    """forward | backward | absolute | weight_svd."""
    gamma: float | None = None
    """The paper's scale instead of zeta: c = m^(1/4) / sqrt(gamma)."""
    direction: str = "ArB2r"
    """ArB2r | A2rBr | ArBr | random: which of the top 2r indices go to A and which to B."""

    def __post_init__(self) -> None:
        """Check the values and put the default zeta in place."""
        super().__post_init__()
        one_of("direction", self.direction, DIRECTIONS)
        one_of("zeta_rule", self.zeta_rule, RULES)
        if self.zeta is not None and self.gamma is not None:
            raise UserError(f"zeta={self.zeta} and gamma={self.gamma}: two names of one scale, give one")
        if self.gamma is not None and self.zeta_rule != "forward":
            raise UserError(f"gamma={self.gamma} is the forward rule's; zeta_rule={self.zeta_rule} needs zeta")
        if self.zeta is None and self.gamma is None:
            object.__setattr__(self, "zeta", 16.0)
        positive("zeta", 1.0 if self.zeta is None else self.zeta)
        positive("gamma", 1.0 if self.gamma is None else self.gamma)
        if self.scaling == "standard" and self.zeta_rule == "forward" and self.gamma is None:
            warnings.warn(
                "lora_ga scaling=standard: the output RMS, zeta sqrt(r) / alpha, grows with the rank",
                stacklevel=3,
            )

    @property
    def needs(self) -> frozenset[str]:
        """The gradient; the weight's spectrum too under zeta_rule=weight_svd."""
        return frozenset({"gradient", "svd"} if self.zeta_rule == "weight_svd" else {"gradient"})

    @property
    def smallest(self) -> int:
        """Twice the rank: the two factors need disjoint directions."""
        return 2 * self.rank

    @property
    def idle(self) -> frozenset[str]:
        """Fields without effect: zeta under weight_svd."""
        return frozenset({"zeta"} if self.zeta_rule == "weight_svd" else ())

    @property
    def lr_factor(self) -> float:
        """sqrt(16 / zeta): a step moves W' by lr eta c = lr sqrt(zeta_layer), whatever alpha is."""
        if self.zeta_rule not in ("forward", "backward"):
            return 1.0
        zeta = self.eta**2 * self.rank / self.gamma if self.gamma is not None else self.zeta or 0.0
        return math.sqrt(16.0 / zeta)

    def check(self, name: str, m: int, n: int) -> None:
        """Raise UserError where 2r exceeds min(m, n): the two factors need disjoint directions."""
        if 2 * self.rank > min(m, n):
            raise UserError(
                f"layer {name}: lora_ga needs 2 rank <= min(m, n), but 2 x {self.rank} > {min(m, n)} "
                f"of its {m}x{n} weight"
            )

    def __call__(self, probe: Probe) -> Factors:
        """Return the two disjoint blocks of gradient singular vectors, scaled by c."""
        from lorax.adapters.core import Identity
        from lorax.adapters.factors import Factors

        r, eta = self.rank, self.eta
        U, S, Vh = probe.gradient_svd(2 * r)
        if float(S[0]) == 0.0:
            raise UserError(f"layer {probe.name}: its gradient is 0 on the calibration data; no direction for lora_ga")
        in_a, in_b = self._indices(probe)
        c = self._scale(probe)
        facts = {"zeta": (eta * c) ** 2, "scale": c, "gradient_sigma_1": float(S[0])}
        return Factors(
            B=(c * U[:, in_b]).contiguous(),
            M=Identity(),
            A=(c * Vh[in_a]).contiguous(),
            eta=eta,
            trainable=frozenset({"A", "B"}),
            shifts_base=True,
            report=probe.facts | facts,
        )

    def _indices(self, probe: Probe) -> tuple[Tensor, Tensor]:
        """Return (IA, IB), two disjoint halves of 0..2r-1."""
        import torch

        r = self.rank
        order = torch.arange(2 * r)
        if self.direction == "ArB2r":
            pair = order[:r], order[r:]
        elif self.direction == "A2rBr":
            pair = order[r:], order[:r]
        elif self.direction == "ArBr":
            pair = order[1::2], order[0::2]
        else:
            order = torch.randperm(2 * r, generator=probe.generator)
            pair = order[:r].sort().values, order[r:].sort().values
        return pair[0].to(probe.device), pair[1].to(probe.device)

    def _scale(self, probe: Probe) -> float:
        """Return the factor scale c of the layer."""
        m, n = probe.shape
        if self.gamma is not None:
            return m**0.25 / math.sqrt(self.gamma)
        if self.zeta_rule == "weight_svd":
            return float((probe.top_svd(self.rank)[1] / self.eta).sqrt().mean())
        layer = {"forward": math.sqrt(m) / self.rank, "backward": math.sqrt(n) / self.rank, "absolute": 1.0}
        return math.sqrt((self.zeta or 0.0) * layer[self.zeta_rule]) / self.eta
