"""Balance: a penalty that keeps a router from sending all tokens to a few experts.

    N sum_i F_i P_i        F_i: share of the tokens that use expert i, P_i: mean of the router's weight for it

The mean of it over the layers, times a weight, is added to the loss. With k experts a token it is k where all experts
are used alike, and at most N. F has no gradient. Padding is no token. Source: Switch Transformer, arXiv:2101.03961
(4)-(6), as MixLoRA's code has it (arXiv:2404.15159; from Mixtral's), there over the tokens of all layers together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorax.adapters.face import Step, Trainable, TrainingRule
from lorax.adapters.gated.experts import GatedExpertsAdapter
from lorax.adapters.pack_state import PackState


def balance_loss(weights: Tensor, top_k: int = 1, counts: Tensor | None = None) -> Tensor:
    """Return N sum_i F_i P_i of one layer, a scalar.

    Args:
        weights: (..., N), the router's weights over all experts.
        top_k: experts that a token uses: those of the largest weights.
        counts: (...), how often each token counts, 0 for padding; None: each once.
    """
    used = torch.zeros_like(weights).scatter(-1, weights.topk(top_k, dim=-1).indices, 1.0)
    shape = (*weights.shape[:-1], 1)
    each = weights.new_ones(shape) if counts is None else counts.to(weights).reshape(shape)
    over = tuple(range(weights.ndim - 1))
    shares, means = ((value * each).sum(over) / each.sum() for value in (used, weights))
    return weights.shape[-1] * (shares * means).sum()


class Balance(TrainingRule):
    """The penalty of one run; with micro-batches, the mean of theirs.

    Args:
        weight: of the penalty.
    """

    in_place = False
    of_batch = True

    def __init__(self, weight: float):
        self.weight = weight
        self._last: Tensor | None = None

    def before_forward(self, step: Step, adapters: Trainable) -> None:
        """Have the layers note what their routers say."""
        for adapter in _gated(adapters):
            adapter.noted = []

    def penalty(self, adapters: Trainable) -> Tensor | None:
        """Return the weighted mean over the layers that the last forward pass went through."""
        losses = []
        for adapter in _gated(adapters):
            noted, adapter.noted = adapter.noted or [], []
            k = adapter.top_k or 1
            losses += [balance_loss(each, k, _counts(adapters.pack, adapters.number, each)) for each in noted]
        if not losses:
            return None
        mean = torch.stack(losses).mean()
        self._last = mean.detach()
        return self.weight * mean

    def after_update(self, step: Step, adapters: Trainable) -> None:
        """Let go of what was noted."""
        self.finish(adapters)

    def finish(self, adapters: Trainable) -> None:
        """Have nothing noted any more."""
        for adapter in _gated(adapters):
            adapter.noted = None

    def report(self) -> dict[str, Any]:
        """Return the mean of N sum_i F_i P_i over the layers in the last step."""
        return {} if self._last is None else {"balance": float(self._last)}


def _gated(adapters: Trainable) -> list[GatedExpertsAdapter]:
    return [each for each in adapters.layer_adapters().values() if isinstance(each, GatedExpertsAdapter)]


def _counts(pack: PackState | None, lane: int, weights: Tensor) -> Tensor | None:
    """Return how often each token of a lane's rows counts; None: each once, or the layer reads no tokens."""
    if pack is None or pack.token_counts is None:
        return None
    places = pack.token_counts.chunk(len(pack.lanes))[pack.lanes.index(lane)]
    return places if weights.shape[:-1] in (places.shape, (places.numel(),)) else None
