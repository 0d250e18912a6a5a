"""The derivative of a fused layer as a differentiable function: the layer again, in plain operations.

Asked for by `create_graph=True` only: gradient penalties, Hessian products, gradients of gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorax.adapters.dropout import draw, kept, scale
from lorax.adapters.fused.base import on_rows
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.fused.function import Call


def gradients(call: Call, x: Tensor | None, weight: Tensor, leaves: Sequence[Tensor], g: Tensor) -> list[Tensor | None]:
    """Return the gradients of x and of the leaves, with a graph back to x, the leaves and g.

    Args:
        call: of the forward.
        x: its input, (..., n); None where it was not kept.
        weight: the frozen weight, as stored.
        leaves: the trained tensors of the forward.
        g: the output's gradient, (..., m).

    Raises:
        UserError: the input was not kept.
    """
    if x is None:
        raise UserError(
            "a second derivative needs a layer's input, which is large and was not kept: "
            "run the forward inside lorax.adapters.adapted.reference_mode()"
        )
    with torch.enable_grad(), call.grouping.holding(leaves):
        y = plain(call, x, weight)
    needed = [t.requires_grad for t in (x, *leaves)]
    wanted = [t for t in (x, *leaves) if t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, g, create_graph=True, allow_unused=True))
    return [next(found) if one else None for one in needed]


def plain(call: Call, x: Tensor, weight: Tensor) -> Tensor:
    """Return the layer's output without its bias, (..., m), lane after lane."""
    WT = weight if call.transposed else weight.mT
    rows = on_rows(x.reshape(-1, x.shape[-1]), call.unpadded, lambda rows: rows @ WT)
    y = rows.view(*x.shape[:-1], WT.shape[1])
    blocks = []
    for position, (x_k, y_k) in enumerate(zip(x.chunk(call.grouping.count), y.chunk(call.grouping.count), strict=True)):
        adapter, mask = call.grouping.positions.get(position), None
        if call.masks is not None and position in call.masks.dropping and adapter is not None:
            drawn = draw(tuple(x_k.shape), call.masks.keys[position : position + 1])[0]
            mask = kept(drawn, adapter.q, y.dtype) * scale(adapter.q)
        blocks.append(y_k if adapter is None else adapter.output(x_k, y_k, None, mask))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
