"""LoRA: B = 0 and a random A on the untouched weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.initializers.base import Ranked, one_of
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(Ranked):
    """W' = W0 + eta B A with B = 0 (arXiv:2106.09685); `scaling=rslora` is arXiv:2312.03732.

    Side taken: the default A is that of loralib and PEFT, U(-1/sqrt n, 1/sqrt n) (Kaiming with
    a = sqrt 5), not the paper's Gaussian; `distribution=gaussian` is PEFT's N(0, 1/r^2).
    At the first SGD step dL/dA = eta B^T G = 0: only B moves, and Delta W_1 = -lr eta^2 G A^T A.
    """

    distribution: str = "kaiming"
    """kaiming | gaussian."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        one_of("distribution", self.distribution, ("kaiming", "gaussian"))

    def __call__(self, probe: Probe) -> Factors:
        """Return B = 0 and A drawn from the layer's own generator."""
        import torch

        from lorax.adapters.core import Identity
        from lorax.adapters.factors import Factors

        m, n = probe.shape
        A = torch.empty(self.rank, n, dtype=torch.float64)  # fp32 and fp64 bases get one A
        if self.distribution == "kaiming":
            A.uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=probe.generator)
        else:
            A.normal_(0.0, 1 / self.rank, generator=probe.generator)
        A = A.to(probe.device, probe.dtype)
        B = torch.zeros(m, self.rank, device=probe.device, dtype=probe.dtype)
        return Factors(B=B, M=Identity(), A=A, eta=self.eta, trainable=frozenset({"A", "B"}))
