"""The fast form of an adapted layer: one autograd function that adds in place and saves little.

    out = x W^T + b;  out += every group of lanes;  the same products run backwards for dx

It is held equal to `AdaptedLinear.forward_readable` by tests. It cannot be differentiated twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lorax.adapters.dropout import dropped, scale
from lorax.adapters.lane import Lane
from lorax.adapters.thin import Thin
from lorax.adapters.wide import Wide

if TYPE_CHECKING:
    from lorax.adapters.layer import AdaptedLinear


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

    def drops(self, x: Tensor, seeds: dict[int, tuple[int, int | None]]) -> dict[int, Tensor]:
        """Draw the mask of every lane that drops, by position, each from its own seed at its own shape."""
        shape = (x.shape[0] // self.count, *x.shape[1:])
        return {
            position: dropped(shape, self.positions[position].q, seed, x.device, width).view(-1, x.shape[-1])
            for position, (seed, width) in seeds.items()
        }


def _is_wide(lane: Lane) -> bool:
    return not lane.shifts_base and {"A", "B"} <= lane.shared and lane.header["kind"] != "identity"


def applies(lane: Lane) -> bool:
    """Whether the fast form covers these factors: all but recentred ones with a core."""
    return not lane.carries or lane.header["kind"] == "identity"


def gathered(rows: Any, drops: dict[int, Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """Return the masks of a group's rows as one tensor, or None where none of them drops."""
    masks = [drops.get(position) for position in rows.positions]
    if all(mask is None for mask in masks):
        return None
    if len(masks) == 1:
        return masks[0][None]
    device = next(mask for mask in masks if mask is not None).device
    none = torch.zeros((), dtype=torch.bool, device=device).expand(shape)
    return torch.stack([none if mask is None else mask for mask in masks])


class Lean(torch.autograd.Function):
    """y = x W^T + b + lanes, for a frozen W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: Call, *leaves: Tensor) -> Tensor:
        """Compute the base product, then let every group add to it in place."""
        out = _base(x, weight, bias, call.transposed)
        plan = call.plan
        x3 = x.reshape(plan.count, -1, x.shape[-1])
        out3 = out.view(plan.count, -1, out.shape[-1])
        drops = plan.drops(x, call.seeds) if call.seeds else {}
        saved: list[Tensor | None] = [weight]
        if plan.thin is not None:
            stack = plan.thin.stack(x.dtype, call.steady)
            drop = gathered(plan.thin.rows, drops, tuple(x3.shape[1:]))
            saved += plan.thin.forward(x3, out3, stack, call.scales, drop)
        for wide in plan.wide:
            saved += wide.forward(x3, out3, call.scales, gathered(wide.rows, drops, tuple(x3.shape[1:])))
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
            dx = g3.flatten(0, 1) @ (weight.mT if ctx.call.transposed else weight)
            dx3 = dx.view(plan.count, -1, dx.shape[-1])
        grads: list[Tensor | None] = []
        if plan.thin is not None:
            grads += plan.thin.backward(saved[:6], ctx.call.scales, g3, dx3)
            saved = saved[6:]
        for wide in plan.wide:
            grads += wide.backward(saved[:5], ctx.call.scales, g3, dx3)
            saved = saved[5:]
        return (None if dx is None else dx.view(ctx.shape), None, None, None, *grads)


class Call:
    """What one forward of a layer needs besides tensors."""

    def __init__(self, plan: Plan, transposed: bool, seeds: dict[int, tuple[int, int | None]], steady: object | None):
        self.plan = plan
        self.scales = [
            0.0 if lane is None else lane.eta * (scale(lane.q) if position in seeds else 1.0)
            for position, lane in ((position, plan.positions.get(position)) for position in range(plan.count))
        ]
        self.transposed = transposed
        self.seeds = seeds
        self.steady = steady


def _base(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """The very call of the replaced module."""
    if not transposed:
        return F.linear(x, weight, bias)
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])


def product_dtype(layer: AdaptedLinear, x: Tensor) -> torch.dtype:
    """Return the dtype in which the layer's products run: autocast's where that is on, else x's own."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (x.dtype, layer.weight.dtype):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def forward(layer: AdaptedLinear, x: Tensor) -> Tensor:
    """Return the output of an adapted layer in its fast form."""
    plan, dtype = layer.plan(), product_dtype(layer, x)
    layer.split(x)
    x = layer.pack.cast(x, dtype)
    seeds = {}
    for position, lane in plan.positions.items():
        if lane.q and lane.training:
            number = layer.pack.lanes[position]
            shape = (x.shape[0] // plan.count, *x.shape[1:])
            seeds[position] = (layer.pack.seed(number), layer.pack.width(number, shape))
    call = Call(plan, layer.transposed, seeds, layer.pack.steady_key)
    return Lean.apply(x, layer.cast("weight", dtype), layer.cast("bias", dtype), call, *plan.leaves)
