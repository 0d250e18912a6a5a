"""Pfeiffer's adapters: one after the feed-forward part of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.initializers.base import one_of
from lorax.initializers.bottleneck.shared import BottleneckMethod
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import nn

    from lorax.architecture.blocks import Block


@register("pfeiffer")
@dataclass(frozen=True, kw_only=True)
class Pfeiffer(BottleneckMethod):
    """One bottleneck a block, after the feed-forward part (arXiv:2005.00247, arXiv:2005.00052).

    With v = z + x, the feed-forward part's output and what came in, and LN the block's last norm:

        norm="reuse", post-norm blocks   y = LN(v + f(u A^T + a) B^T + b), u = LN(v): the norm is used twice
        norm="none", and pre-norm blocks y = z + f(z A^T + a) B^T + b, before the block's sum

    The first is `SeqBnConfig` of the library `adapters` on BERT (original_ln_before, residual_before_ln,
    original_ln_after); it stands at the norm, where the second linear layer and the norm are in one module (BERT,
    RoBERTa, DeBERTa, ELECTRA). Side taken on pre-norm blocks (Llama, GPT-2, T5), for which the paper has no rule: the
    adapter reads the feed-forward part's output z, as series adapters do in LLM-Adapters (arXiv:2304.01933); the
    library reads the sum z + x there.
    """

    norm: str = "reuse"
    """reuse | none."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        one_of("norm", self.norm, ("reuse", "none"))

    def sites(self, model: nn.Module) -> list[str]:
        """Return the blocks' last norms where they are reused, else the last linear layers."""

        def choose(block: Block) -> tuple[str | None]:
            return (block.norm if block.norm is not None and self.norm == "reuse" else block.down,)

        return self.sites_at(model, choose, "feed-forward part")

    def reads_at(self, module: nn.Module) -> str:
        """Return norm at a layer norm that is reused, else output."""
        from lorax.adapters.bottleneck.sites import is_norm

        return "norm" if self.norm == "reuse" and is_norm(module) else "output"
