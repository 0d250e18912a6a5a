"""FactorsAt: one layer's part of `StackedFactors`, computed by `FusedLinear` as one of its groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lorax.adapters.fused.blocks import Blocks, group_masks, product
from lorax.adapters.stacking.factors import StackedFactors

_Views = tuple[Tensor, Tensor, Tensor, Tensor]
"""D, U, and where the gradients of s A and B^T go; of a single lane without the first dim."""


class FactorsAt:
    """The stacked lanes at one layer.

    Args:
        factors: of all layers.
        layer: the layer's name.
        positions: of the lanes among the active ones, ascending.
        count: number of active lanes.
    """

    keeps_input = True

    def __init__(self, factors: StackedFactors, layer: str, positions: Sequence[int], count: int):
        self.factors, self.layer = factors, layer
        self.adapters = [lane[layer] for lane in factors.adapters]
        self.blocks = Blocks(list(positions), count)
        self.rank = factors.rank_at[layer]
        self.anchor = factors.anchor
        self.single = len(positions) == 1
        self._views: dict[torch.dtype, _Views] = {}

    def views(self, dtype: torch.dtype) -> _Views:
        """Return D, U and the gradients' places, as views that stay the same from step to step."""
        products = self.factors.products(dtype)
        if dtype not in self._views:
            views = (*products.views(self.layer), *products.gradient_views(self.layer))
            self._views[dtype] = cast("_Views", tuple(view[0] for view in views) if self.single else views)
        return self._views[dtype]

    def forward(
        self, x3: Tensor, out3: Tensor, lane_scales: list[float], drawn: Tensor | None, frozen: object | None
    ) -> list[Tensor | None]:
        """Add the lanes' outputs to `out3` in place; return what `backward` needs; see `StackedGroup.forward`."""
        D, U, *_ = self.views(x3.dtype)
        x = self._take(x3)
        h = product(x if drawn is None else self._masks(drawn, x.dtype).mul_(x), D.mT)
        self._add(out3, h, U)
        return [h, D, U, drawn]

    def backward(
        self,
        saved: list[Tensor | None],
        x: Tensor | None,
        lane_scales: list[float],
        g3: Tensor,
        dx3: Tensor | None,
        sigma: Tensor | None = None,
    ) -> list[Tensor | None]:
        """Add to the input's gradient and to the parameters', in place; see `StackedGroup.backward`."""
        h, D, U, drawn = cast("tuple[Tensor, Tensor, Tensor, Tensor | None]", saved)
        g, rows = self._take(g3), self._take(cast(Tensor, x).reshape(g3.shape[0], -1, cast(Tensor, x).shape[-1]))
        gh = product(g, U.mT)
        mask = None if drawn is None else self._masks(drawn, gh.dtype)
        trained_h, trained_gh = h, gh
        if self.factors.carried:  # U = [dB^T ; B0^T], D = s [A0 + dA ; dA]: dB meets the first half, dA both
            R, r = self.factors.R, self.rank
            trained_h, trained_gh = h[..., :r], gh[..., :r] + gh[..., R : R + r]
        products, (_, _, gA, gB) = self.factors.products(gh.dtype), self.views(gh.dtype)
        products.add_gradient(self.layer, 1, gB, trained_h.mT, g)
        products.add_gradient(self.layer, 0, gA, trained_gh.mT, rows if mask is None else rows * mask)
        self.factors.reached.add(self.layer)
        if dx3 is not None and mask is None:
            self._add(dx3, gh, D)
        elif dx3 is not None:
            added = product(gh, D)
            self.blocks.accumulate(dx3, added[None] if self.single else added, mask)
        return [None]

    def _take(self, x3: Tensor) -> Tensor:
        """Return the group's rows: (K, T, n), of a single lane (T, n)."""
        return x3[self.blocks.positions[0]] if self.single else self.blocks.take(x3)

    def _masks(self, drawn: Tensor, dtype: torch.dtype) -> Tensor:
        masks = group_masks(drawn, self.adapters, dtype)
        return masks[0] if self.single else masks

    def _add(self, out3: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a @ b to the group's rows of `out3`, in place."""
        if self.single:
            out3[self.blocks.positions[0]].addmm_(a, b)
        else:
            self.blocks.add(out3, a, b)
