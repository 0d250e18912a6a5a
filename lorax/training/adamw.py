"""LaneAdamW: one AdamW for K lanes whose values lie in one tensor, with rates by lane and tensor, without a wait.

    g <- g min(1, clip_k / (||g_k|| + 1e-6))
    m <- m + (1 - b1) (g - m);    v <- b2 v + (1 - b2) g^2
    p <- p (1 - lr_k r w_k) - lr_k r / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

k: lane, r: the tensor's share of the lane's rate, w: weight decay, t: the lane's own count of updates. It is
`torch.optim.AdamW`, which takes one number for all of a tensor, and whose update it equals to rounding. A lane whose
numbers are not finite keeps its values: it is left out by factors, on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lorax.adapters.stacking.buffer import LaneBuffer
    from lorax.training.update import Update

BETAS = (0.9, 0.999)
EPS = 1e-8
_AHEAD = 64
"""Steps whose numbers are put on the device at a time."""


@dataclass(frozen=True)
class LanePlan:
    """How one lane is updated."""

    rate: Callable[[int], float]
    """rate(t) -> the learning rate of the update after t others."""
    weight_decay: float = 0.0
    clip: float | None = None
    """Bound on the gradient's norm."""


class LaneAdamW:
    """AdamW over the rows of one buffer.

    Args:
        values: (K, R, C), changed in place.
        gradients: (K, R, C), clipped in place.
        plans: of each lane.
        share: (K, 1, C), of each tensor's learning rate in its lane's; None: 1 everywhere.
    """

    def __init__(self, values: Tensor, gradients: Tensor, plans: Sequence[LanePlan], share: Tensor | None = None):
        self.values, self.gradients, self.plans, self.share = values, gradients, list(plans), share
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(values), torch.zeros_like(values)
        self.decays = any(plan.weight_decay for plan in plans)
        self.clip: Tensor | None = None
        """(K,), infinite where a lane has no bound."""
        if any(plan.clip is not None for plan in plans):
            self.clip = values.new_tensor([math.inf if plan.clip is None else plan.clip for plan in plans])
        self.now = values.new_zeros(3, len(self.plans))
        """Of the next update, by lane: lr / (1 - b1^t), lr w, sqrt(1 - b2^t). The one input of a step that changes."""
        self._ahead: tuple[int, Tensor] | None = None

    def prepare(self, counts: Sequence[int], taken: int) -> None:
        """Put the numbers of the next update where `step` reads them.

        Args:
            counts: updates of each lane before this one.
            taken: updates of this optimiser before this one; counts rise with it.
        """
        if self._ahead is None or not 0 <= taken - self._ahead[0] < _AHEAD:
            rows = [
                [self._numbers(plan, t + i) for plan, t in zip(self.plans, counts, strict=True)] for i in range(_AHEAD)
            ]
            self._ahead = (taken, self.values.new_tensor(rows).mT.contiguous())  # (steps, 3, K)
        self.now.copy_(self._ahead[1][taken - self._ahead[0]])

    @staticmethod
    def _numbers(plan: LanePlan, t: int) -> tuple[float, float, float]:
        lr = plan.rate(t)
        return lr / (1 - BETAS[0] ** (t + 1)), lr * plan.weight_decay, math.sqrt(1 - BETAS[1] ** (t + 1))

    def norms(self) -> Tensor:
        """Return the norm of each lane's gradient, (K,)."""
        return torch.linalg.vector_norm(self.gradients.flatten(1), dim=1)

    def step(self, norms: Tensor, ended: Tensor) -> None:
        """Clip the gradients and update the values, but those of lanes that have ended.

        Args:
            norms: (K,), of the gradients that a lane's bound is for.
            ended: (K,) bool: True: the lane keeps its values, and its gradient becomes 0.
        """
        g, m, v = self.gradients, self.exp_avg, self.exp_avg_sq
        if self.clip is not None:
            g.mul_((self.clip / (norms + 1e-6)).clamp_(max=1.0)[:, None, None])
        g.masked_fill_(ended[:, None, None], 0.0)
        m.lerp_(g, 1 - BETAS[0])
        v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        size, decay = self.now[:2].masked_fill(ended, 0.0)[:, :, None, None].unbind()
        root = self.now[2, :, None, None]
        if self.share is not None:
            size, decay = size * self.share, decay * self.share
        if self.decays:
            self.values.mul_(1 - decay)
        direction = v.sqrt().div_(root).add_(EPS)
        torch.div(m, direction, out=direction)
        self.values.addcmul_(direction, size, value=-1.0)


def optimizer_of(buffer: LaneBuffer, updates: Sequence[Update]) -> LaneAdamW:
    """Return the optimiser of a buffer, with the moments that the runs hold."""
    plans = [LanePlan(update.rate, update.first.run.weight_decay, update.first.plan.clip) for update in updates]
    share = torch.ones_like(buffer.values[:, :1])
    for k, update in enumerate(updates):
        shares = {each.name: each.share for each in update.trained}
        for name, slot in buffer.named(k).items():
            share[k, :, slot.start : slot.stop] = shares[name]
    optimizer = LaneAdamW(buffer.values, buffer.gradients, plans, None if bool((share == 1).all()) else share)
    for k, update in enumerate(updates):
        for name, slot in buffer.named(k).items():
            if name in update.first.moments:
                slot.view(optimizer.exp_avg[k]).copy_(update.first.moments[name]["exp_avg"])
                slot.view(optimizer.exp_avg_sq[k]).copy_(update.first.moments[name]["exp_avg_sq"])
    return optimizer
