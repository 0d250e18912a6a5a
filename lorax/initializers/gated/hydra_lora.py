"""HydraLoRA: one A, several B, weighted by a router that reads each token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.initializers.gated.shared import Gated
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.gated.experts import GatedExperts
    from lorax.probing.probe import Probe


@register("hydra_lora")
@dataclass(frozen=True, kw_only=True)
class HydraLoRA(Gated):
    """y = base + eta sum_i g_i(x) B_i A x, g(x) = softmax(W_r x), one A for N experts B_i (arXiv:2404.19245).

    W_r (N x n) and A as LoRA's, U(-1/sqrt n, 1/sqrt n), B_i = 0; r n + N r m + N n values a layer. With W_r = 0 it is
    LoRA with the mean of the B_i. Dropout falls on what A reads, with a mask for each expert, not on what the router
    reads; the softmax is in float32: both as in the authors' code. Its script has rank 4, alpha 32, 4 experts and
    dropout 0.05 at the feed-forward layers (`targets=gate_proj|up_proj|down_proj`), and no balance loss in effect.

    Sides taken: rank and alpha are LoRA's here, all linear layers; the paper finds N by clustering the data, here it is
    a field. `top_k`, `temperature` and `balance` are not the paper's: see init=molora.
    """

    def count(self, m: int, n: int) -> int:
        """Return r n + N r m + N n."""
        return self.rank * n + self.experts * (self.rank * m + n)

    def __call__(self, probe: Probe) -> GatedExperts:
        """Return one random A, B_i = 0 and a random router."""
        import torch

        n = probe.shape[1]
        router = torch.empty(self.experts, n, dtype=torch.float64)
        router.uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=probe.generator)
        return self._plan(probe, True, router)
