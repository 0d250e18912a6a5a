"""MoLoRA: several LoRAs at each layer, weighted by a router that reads each token; with `top_k` MoLA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.initializers.gated.shared import Gated
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.gated.experts import GatedExperts
    from lorax.probing.probe import Probe

STD = 0.02


@register("molora")
@dataclass(frozen=True, kw_only=True)
class MoLoRA(Gated):
    """y = base + eta sum_i g_i(x) B_i A_i x, g(x) = softmax(W_r x), N experts at each layer (arXiv:2309.05444).

    W_r (N x n) ~ N(0, 0.02^2), A_i as LoRA's, B_i = 0; N r (m + n) + N n values a layer. `top_k=2` keeps the two
    largest weights of a token, divided by their sum: MoLA (arXiv:2402.08562) with as many experts at every layer.
    `experts=8 top_k=2 balance=0.001` has the router, the renormalisation and the load-balance loss of MixLoRA
    (arXiv:2404.15159), at each linear layer; MixLoRA itself has one router for the three layers of a feed-forward
    block, and plain LoRA at attention.

    Sides taken: A_i is Kaiming-uniform, as in MoLA's and MixLoRA's code, not MoLoRA's Gaussian; the kept weights are
    divided by their sum, which MoLoRA's code leaves out; the balance loss is that of a layer, averaged over layers,
    where MixLoRA's code counts the tokens of all layers together: experts of two layers have nothing to do with each
    other. Dropout has a mask for each expert. All experts are computed, the weights of the others being 0.
    """

    def count(self, m: int, n: int) -> int:
        """Return N r (m + n) + N n."""
        return self.experts * (self.rank * (m + n) + n)

    def __call__(self, probe: Probe) -> GatedExperts:
        """Return N random A_i, B_i = 0 and a random router."""
        import torch

        router = torch.empty(self.experts, probe.shape[1], dtype=torch.float64)
        return self._plan(probe, False, router.normal_(0.0, STD, generator=probe.generator))
