"""The fast form of an adapted layer: one autograd function that adds in place and saves little.

    out = x W^T + b;  out += every group of lanes;  the same products run backwards for dx

It is held equal to `AdaptedLinear.forward_readable` by tests. It cannot be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lorax.adapters.dropout import draw, scale
from lorax.adapters.fused.blocks import Rows
from lorax.adapters.fused.shared_basis import Wide
from lorax.adapters.fused.stacked import Thin
from lorax.adapters.layer_adapter import Lane

if TYPE_CHECKING:
    from lorax.adapters.linear import AdaptedLinear


Seeds = dict[int, tuple[int, int | None]]
"""{position of an active lane: (seed of its mask, its own number of tokens if the batch is padded further)}."""


class Plan:
    """How the active lanes of one layer are grouped.

    Args:
        lanes: the adapter of every active lane, None where it has none here.
    """

    def __init__(self, lanes: list[Lane | None]):
        self.count = len(lanes)
        present = [(position, lane) for position, lane in enumerate(lanes) if lane is not None]
        groups: dict[tuple[int, int], list[tuple[int, Lane]]] = {}
        thin = []
        for position, lane in present:
            if _is_wide(lane):
                key = (id(lane.start("B")), id(lane.start("A")))
                groups.setdefault(key, []).append((position, lane))
            else:
                thin.append((position, lane))
        self.thin = Thin(thin, self.count) if thin else None
        self.wide = [Wide(group, self.count) for group in groups.values()]
        self.leaves = [*(self.thin.leaves if self.thin else ()), *(leaf for w in self.wide for leaf in w.leaves)]
        self.positions = dict(present)
        self.applies = all(applies(lane) for _, lane in present)
        """Whether the fast form covers every active lane."""
        self.scales = [0.0 if lane is None else lane.eta for lane in lanes]
        """s_k of every position where nothing is dropped."""
        self.drops = any(lane.q for _, lane in present)
        self.alone = self.wide[0] if self.count == 1 and self.wide else None
        self.sole = self.wide[0] if not thin and len(self.wide) == 1 and self.wide[0].rows.all else None
        """The wide group that holds every active lane, if there is one."""

    def mask(self, rows: Rows, x: Tensor, seeds: Seeds) -> Tensor | None:
        """Draw the bytes of a group's masks, (K, T, n), each lane from its own seed at its own shape.

        A lane that drops nothing has 255 everywhere. None where no lane of the group drops.
        """
        if not any(position in seeds for position in rows.positions):
            return None
        shape = (x.shape[0] // self.count, *x.shape[1:])
        drawn = [draw(shape, *_at(seeds, position, x)) for position in rows.positions if position in seeds]
        if len(rows.positions) == 1:
            return drawn[0].view(1, -1, x.shape[-1])
        all_kept = drawn[0].new_full((), 255).expand(shape)
        left = iter(drawn)
        stacked = torch.stack([next(left) if position in seeds else all_kept for position in rows.positions])
        return stacked.view(len(rows.positions), -1, x.shape[-1])


def _at(seeds: Seeds, position: int, x: Tensor) -> tuple[int, torch.device, int | None]:
    seed, width = seeds[position]
    return seed, x.device, width


def _is_wide(lane: Lane) -> bool:
    return not lane.shifts_base and {"A", "B"} <= lane.shared and lane.header["kind"] != "identity"


def applies(lane: Lane) -> bool:
    """Whether the fast form covers these factors: all but recentred ones with a core."""
    return not lane.carries or lane.header["kind"] == "identity"


class Lean(torch.autograd.Function):
    """y = x W^T + b + lanes, for a frozen W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: Call, *leaves: Tensor) -> Tensor:
        """Compute the base product, then let every group add to it in place."""
        out = _base(x, weight, bias, call.transposed, call.live)
        plan = call.plan
        x3 = x.reshape(plan.count, -1, x.shape[-1])
        out3 = out.view(plan.count, -1, out.shape[-1])
        saved: list[Tensor | None] = [weight]
        if plan.thin is not None:
            stack = plan.thin.stack(x.dtype, call.steady)
            drawn = plan.mask(plan.thin.rows, x, call.seeds)
            saved += plan.thin.forward(x3, out3, stack, call.scales, drawn)
        for wide in plan.wide:
            saved += wide.forward(x3, out3, call.scales, plan.mask(wide.rows, x, call.seeds))
        ctx.save_for_backward(*saved)
        ctx.call, ctx.shape = call, x.shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Run the same products backwards."""
        plan, (weight, *saved) = ctx.call.plan, ctx.saved_tensors
        g3 = g.reshape(plan.count, -1, g.shape[-1])
        dx = dx3 = None
        if ctx.needs_input_grad[0]:
            if ctx.call.sigma is not None:
                dx = g3.new_empty(g3.shape[0] * g3.shape[1], ctx.shape[-1])  # for the wide group to fill
            else:
                dx = _chosen(
                    g3.flatten(0, 1), ctx.call.live, lambda own: own @ (weight.mT if ctx.call.transposed else weight)
                )
            dx3 = dx.view(plan.count, -1, dx.shape[-1])
        grads: list[Tensor | None] = []
        if plan.thin is not None:
            grads += plan.thin.backward(saved[:6], ctx.call.scales, g3, dx3)
            saved = saved[6:]
        for wide in plan.wide:
            grads += wide.backward(saved[:5], ctx.call.scales, g3, dx3, ctx.call.sigma)
            saved = saved[5:]
        return (None if dx is None else dx.view(ctx.shape), None, None, None, *grads)


class Call:
    """What one forward of a layer needs besides tensors."""

    def __init__(
        self,
        plan: Plan,
        transposed: bool,
        seeds: Seeds,
        steady: object | None,
        live: Tensor | None,
        sigma: Tensor | None,
    ):
        self.plan = plan
        self.live = live
        self.sigma = sigma
        """The weight's singular values, where the only group of lanes computes the input's gradient from them."""
        self.scales = plan.scales
        if seeds:
            self.scales = list(plan.scales)
            for position in seeds:
                self.scales[position] *= scale(plan.positions[position].q)
        self.transposed = transposed
        self.seeds = seeds
        self.steady = steady


def _base(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, live: Tensor | None = None) -> Tensor:
    """The very call of the replaced module, on the tokens that are no padding where these are known."""
    if live is not None:
        out = _chosen(x.flatten(0, 1), live, lambda own: _base(own, weight, bias, transposed))
        return out.view(*x.shape[:-1], -1)
    if not transposed:
        return F.linear(x, weight, bias)
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])


def _chosen(x: Tensor, live: Tensor | None, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Return product(x), (T, .), computed for the rows `live` alone; the others are 0."""
    if live is None:
        return product(x)
    own = product(x.index_select(0, live))
    return own.new_zeros(x.shape[0], own.shape[1]).index_copy_(0, live, own)


def product_dtype(layer: AdaptedLinear, x: Tensor) -> torch.dtype:
    """Return the dtype in which the layer's products run: autocast's where that is on, else x's own."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (x.dtype, layer.weight.dtype):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def forward(layer: AdaptedLinear, plan: Plan, x: Tensor) -> Tensor:
    """Return the output of an adapted layer in its fast form."""
    dtype = product_dtype(layer, x)
    if plan.count > 1:
        layer.check_rows(x)
    x = layer.pack.cast(x, dtype)
    seeds = {}
    for position, lane in plan.positions.items() if plan.drops else ():
        if lane.q and lane.training:
            number = layer.pack.lanes[position]
            shape = (x.shape[0] // plan.count, *x.shape[1:])
            seeds[position] = (layer.pack.seed(number), layer.pack.width(number, shape))
    weight, bias = layer.cast("weight", dtype), layer.cast("bias", dtype)
    sigma = None if seeds else _values(layer, plan, x, weight)
    if plan.alone is not None and not seeds:
        W = weight.mT if layer.transposed else weight
        y = plan.alone.whole(x, W, bias, layer.pack.steady_key, sigma is not None)
        if y is not None:
            return y
    call = Call(plan, layer.transposed, seeds, layer.pack.steady_key, layer.pack.alive(x), sigma)
    return Lean.apply(x, weight, bias, call, *plan.leaves)


def _values(layer: AdaptedLinear, plan: Plan, x: Tensor, weight: Tensor) -> Tensor | None:
    """Return the weight's singular values where its singular vectors are the factors of every lane."""
    wide = plan.sole
    if wide is None or not (x.requires_grad and torch.is_grad_enabled()) or x.dtype != weight.dtype:
        return None
    name = f"singular values {id(wide.lanes[0].start('B'))} {id(wide.lanes[0].start('A'))}"
    with torch.no_grad():
        return layer.remember(name, weight, lambda own: wide.values(own.mT if layer.transposed else own))
