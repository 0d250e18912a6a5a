"""The parallel adapter of He et al.: beside the feed-forward part of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.initializers.bottleneck.shared import BottleneckMethod
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import nn


@register("parallel_adapter")
@dataclass(frozen=True, kw_only=True)
class ParallelAdapter(BottleneckMethod):
    """y = FFN(x) + s (f(x A^T + a) B^T + b), x what the feed-forward part is given (arXiv:2110.04366), s = 4.

    `ParBnConfig` of the library `adapters`: relu, s = 4, A Kaiming, B zero. On pre-norm models x is what the block's
    norm gives, as in the authors' code.

    Where the block itself calls the two linear layers of its feed-forward part (BERT, BART, OPT), no one module is
    given x and returns FFN(x): the adapter would have to read at one module what it adds at another, run by run of a
    pack. Such models are refused.
    """

    scale: float = 4.0
    """s."""

    default_scale: ClassVar[float] = 4.0
    reads: ClassVar[str] = "input"

    def sites(self, model: nn.Module) -> list[str]:
        """Return the feed-forward parts that are one module with one tensor in."""
        what = "feed-forward part in one module with one tensor in and out"
        return self.sites_at(model, lambda block: (block.feed_forward,), what)
