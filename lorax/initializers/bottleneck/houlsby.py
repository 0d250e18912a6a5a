"""Houlsby's adapters: one after attention and one after the feed-forward part of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.initializers.bottleneck.shared import BottleneckMethod
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import nn


@register("houlsby")
@dataclass(frozen=True, kw_only=True)
class Houlsby(BottleneckMethod):
    """y = z + f(z A^T + a) B^T + b on z, the output of attention and that of the feed-forward part (arXiv:1902.00751).

    The site is the last linear layer of each, so the adapter comes before the block's sum and norm, as in the paper and
    in `DoubleSeqBnConfig` of the library `adapters`, whose nonlinearity (swish) is the default here too.
    Sides taken: dropout of the base between layer and adapter is off in lorax, so "after the layer" and "after its
    dropout" are one; cross-attention gets none (the library's default); the paper's trained layer norms stay frozen.
    """

    nonlinearity: str = "silu"
    """f: relu | gelu | silu | tanh | identity."""

    def sites(self, model: nn.Module) -> list[str]:
        """Return the last linear layers of attention and of the feed-forward part."""
        what = "attention output and feed-forward part"
        return self.sites_at(model, lambda block: (block.attention, block.down), what)
