"""FusedLinear: an adapted linear layer as one autograd function that adds in place and saves little.

    out = x W^T + b;  out += every group of lanes;  the same products run backwards for dx

Tests compare it with `AdaptedLayer.forward_reference`. Its derivative is differentiated again through plain
operations (`fused.twice`), which need the layer's input: it is kept where A trains, and where it is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lorax.adapters.dropout import draw, scale
from lorax.adapters.fused.base import Product, base_product, on_rows
from lorax.adapters.fused.blocks import Blocks
from lorax.adapters.fused.shared_basis import SharedBasisGroup
from lorax.adapters.fused.stacked import StackedGroup
from lorax.adapters.fused.twice import gradients
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.adapters.low_rank import LowRankAdapter
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.stacking.cores import CoresAt
    from lorax.adapters.stacking.layer import FactorsAt
    from lorax.adapters.stacking.stacks import Stacks

    Group = StackedGroup | SharedBasisGroup | FactorsAt

_SMALL = 1 << 18
"""An input of up to this many numbers is kept though no first derivative needs it, so that a second one may."""


@dataclass(frozen=True)
class Masks:
    """The dropout masks of one call."""

    keys: Tensor
    """(K_active,) what the mask of each active lane is drawn from."""
    dropping: frozenset[int]
    """Positions of the active lanes that drop anything now."""


class Grouping:
    """How the active lanes of one layer are computed together.

    Args:
        adapters: the adapter of every active lane, None where it has none here.
        stacks: the buffers that trained tensors lie in, where they do.
        layer: the layer's name in them.
    """

    def __init__(self, adapters: Sequence[LayerAdapter | None], stacks: Stacks | None = None, layer: str = ""):
        self.count = len(adapters)
        present = [(position, adapter) for position, adapter in enumerate(adapters) if adapter is not None]
        self.positions: dict[int, LayerAdapter] = dict(present)
        """{position among the active lanes: adapter}."""
        self.fusible = all(adapter.fusible for _, adapter in present)
        """Whether the fused form covers every active lane."""
        self.drops = any(adapter.q for _, adapter in present)
        self.scales = [0.0 if adapter is None else adapter.eta or 0.0 for adapter in adapters]
        """s_k of every position where nothing is dropped."""
        self.held: list[FactorsAt | CoresAt] = []
        """Groups whose tensors lie in a buffer of several lanes."""
        self.stacked: StackedGroup | None = None
        self.shared: list[SharedBasisGroup] = []
        self.only_group: SharedBasisGroup | None = None
        """The group with a shared basis that holds every active lane, if there is one."""
        self.keeps_input = False
        """Whether a gradient needs the layer's input."""
        self.groups: list[Group] = []
        """All groups, in the order in which they are computed."""
        self._anchors: list[Tensor] = []
        self._places: list[tuple[dict[str, Any], str]] = []
        """Where each trained tensor is held: `torch.func.functional_call` puts others there for a while."""
        if self.fusible and stacks is not None:
            self.held = stacks.at(layer, {id(adapter): position for position, adapter in present}, self.count)
        if self.fusible:
            held = {position for group in self.held for position in group.blocks.positions}
            self._group([(at, cast(LowRankAdapter, adapter)) for at, adapter in present if at not in held])

    def _group(self, present: list[tuple[int, LowRankAdapter]]) -> None:
        bases: dict[tuple[int, int], list[tuple[int, LowRankAdapter]]] = {}
        stacked = []
        for position, adapter in present:
            if _shares_basis(adapter):
                key = (id(adapter.start("B")), id(adapter.start("A")))
                bases.setdefault(key, []).append((position, adapter))
            else:
                stacked.append((position, adapter))
        self.stacked = StackedGroup(stacked, self.count) if stacked else None
        self.shared = [SharedBasisGroup(group, self.count) for group in bases.values()]
        own: list[StackedGroup | SharedBasisGroup] = [
            *([self.stacked] if self.stacked is not None else []),
            *self.shared,
        ]
        self.groups = [*self.held, *own]
        self.keeps_input = self.stacked is not None and self.stacked.trains["A"]
        self.keeps_input |= any(group.keeps_input for group in self.held)
        adapters = [adapter for group in own for adapter in group.adapters]
        self._places = [(adapter._parameters, name) for adapter in adapters for name in adapter.trained()]
        self._anchors = [group.anchor for group in self.held]
        whole = [group for group in self.groups if isinstance(group, SharedBasisGroup) and group.blocks.all]
        if len(self.groups) == 1 and whole:
            [self.only_group] = whole

    def leaves(self) -> list[Tensor]:
        """Return what `FusedLinear` gives gradients to: an anchor of each held group, then the trained tensors."""
        return [*self._anchors, *(held[name] for held, name in self._places)]

    @contextmanager
    def holding(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Have other tensors in the adapters for a while."""
        before = [held[name] for held, name in self._places]
        self._hold(leaves)
        try:
            yield
        finally:
            self._hold(before)

    def _hold(self, leaves: Sequence[Tensor]) -> None:
        for (held, name), leaf in zip(self._places, leaves, strict=True):
            held[name] = leaf

    def draw_bytes(self, blocks: Blocks, x: Tensor, masks: Masks | None) -> Tensor | None:
        """Draw the bytes of a group's masks, (K, T, n), each lane from its own key; None where no lane of it drops."""
        if masks is None or masks.dropping.isdisjoint(blocks.positions):
            return None
        drawn = draw((x.shape[0] // self.count, *x.shape[1:]), blocks.take(masks.keys))
        drawn = drawn.reshape(len(blocks.positions), -1, x.shape[-1])
        for k, position in enumerate(blocks.positions):
            if position not in masks.dropping and self.positions[position].q:
                drawn[k] = 255  # a lane that is in evaluation mode beside others that train
        return drawn


def _shares_basis(adapter: LowRankAdapter) -> bool:
    """Whether B and A are frozen and one copy serves all lanes (singular vectors), around a core."""
    return not adapter.shifts_base and {"A", "B"} <= adapter.shared and adapter.header["kind"] != "identity"


class FusedLinear(torch.autograd.Function):
    """y = x W^T + b + what every group adds, for a frozen W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: Call, *leaves: Tensor) -> Tensor:
        """Compute the base product, then let every group add to it in place."""
        out = base_product(x, weight, bias, call.transposed, call.unpadded, call.own)
        grouping = call.grouping
        x3 = x.reshape(grouping.count, -1, x.shape[-1])
        out3 = out.view(grouping.count, -1, out.shape[-1])
        keeps = grouping.keeps_input or x.numel() <= _SMALL
        saved: list[Tensor | None] = [x if keeps else None, weight if call.dequantised is None else None]
        ctx.counts = []  # how many tensors each group saves
        for group in grouping.groups:
            drawn = grouping.draw_bytes(group.blocks, x, call.masks)
            tensors = group.forward(x3, out3, call.scales, drawn, call.frozen)
            ctx.counts.append(len(tensors))
            saved += tensors
        ctx.save_for_backward(*saved)
        ctx.call, ctx.shape, ctx.leaves = call, x.shape, leaves
        # autograd refuses to change a view that a Function returns in place, and F.linear may return one
        return torch.ops.aten._unsafe_view(out, out.shape) if out._is_view() else out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Run the same products backwards."""
        call, (x, weight, *saved) = ctx.call, ctx.saved_tensors
        needed = ctx.needs_input_grad[0] and call.sigma is None
        if call.dequantised is not None and (needed or torch.is_grad_enabled()):
            weight = call.dequantised().to(g.dtype)
        if torch.is_grad_enabled():  # create_graph=True
            if call.grouping.held:
                raise UserError("a second derivative inside a training step: take it outside of the step's own passes")
            dx, *grads = gradients(call, x, weight, ctx.leaves, g)
            return (dx, None, None, None, *grads)
        count = call.grouping.count
        g3 = g.reshape(count, -1, g.shape[-1])
        dx = dx3 = None
        if ctx.needs_input_grad[0]:
            if call.sigma is not None:
                dx = g3.new_empty(g3.shape[0] * g3.shape[1], ctx.shape[-1])  # for the only group to fill
            else:
                W = weight.mT if call.transposed else weight
                dx = on_rows(g3.flatten(0, 1), call.unpadded, lambda rows: rows @ W)
            dx3 = dx.view(count, -1, dx.shape[-1])
        grads = []
        for group, kept in zip(call.grouping.groups, ctx.counts, strict=True):
            grads += group.backward(saved[:kept], x, call.scales, g3, dx3, call.sigma)
            saved = saved[kept:]
        return (None if dx is None else dx.view(ctx.shape), None, None, None, *grads)


class Call:
    """What one forward of a layer needs besides tensors.

    Args:
        grouping: how the active lanes are computed together.
        transposed: the weight is stored as (n, m).
        masks: of dropout; None where nothing is dropped.
        frozen: names a time in which no trained tensor changes, so that what is derived from them is kept.
        unpadded: flat indices of the tokens that are no padding, where padding is left out.
        sigma: the weight's singular values, where the only group computes the input's gradient from them.
        own: own(x, weight, bias) -> x W^T + b, the replaced layer's own call where that is no `F.linear`.
    """

    def __init__(
        self,
        grouping: Grouping,
        transposed: bool,
        masks: Masks | None,
        frozen: object | None,
        unpadded: Tensor | None,
        sigma: Tensor | None,
        own: Product | None = None,
    ):
        self.grouping, self.transposed, self.masks = grouping, transposed, masks
        self.frozen, self.unpadded, self.sigma, self.own = frozen, unpadded, sigma, own
        self.dequantised: Callable[[], Tensor] | None = None
        """Returns W, (m, n), for the backward pass, where what the layer stores is no matrix; never kept."""
        self.scales = grouping.scales
        if masks is not None:
            self.scales = list(grouping.scales)
            for position in masks.dropping:
                self.scales[position] *= scale(grouping.positions[position].q)
