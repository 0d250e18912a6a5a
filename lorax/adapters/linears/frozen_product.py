"""The product of a frozen layer whose weight is dequantised for the backward pass, and not kept for it.

A package's own derivative may keep a float copy of the weight from the forward pass to the backward pass: torchao's
int8 layers do. With many layers between the first adapter and the loss that is a float copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

Product = Callable[[Tensor], Tensor]
"""product(x) -> x W^T + b by the layer's own call."""
Collect = Callable[[Tensor, Tensor], None]
"""collect(g, x): the output's gradient, (T, m), and the input, (T, n), of one call, both in float32 or wider."""


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor | None,
        product: Product,
        weight: Callable[[], Tensor],
        collect: Collect | None,
    ) -> Tensor:
        ctx.weight, ctx.collect = weight, collect
        ctx.save_for_backward(x if collect is not None else None)
        y = product(x)
        return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.autocast(g.device.type, enabled=False):
            if ctx.collect is not None:
                wide = torch.promote_types(torch.float32, x.dtype)
                rows = (g.detach().reshape(-1, g.shape[-1]).to(wide), x.reshape(-1, x.shape[-1]).to(wide))
                ctx.collect(*rows)
            dx = g @ ctx.weight().to(g.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


def frozen_product(x: Tensor, product: Product, weight: Callable[[], Tensor]) -> Tensor:
    """Return product(x) = x W^T + b, whose derivative asks for W again.

    Args:
        x: (..., n).
        product: the layer's own call.
        weight: returns W, (m, n).
    """
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if transformed or not (torch.is_grad_enabled() and x.requires_grad) or torch.compiler.is_compiling():
        return product(x)
    return _Product.apply(x, None, product, weight, None)


@contextmanager
def collecting(layers: Iterable[tuple[nn.Module, Product, Callable[[], Tensor], Collect]]) -> Iterator[None]:
    """Have layers report what their weight's gradient is made of, G = g^T x, in each backward pass.

    A quantised weight has no gradient of its own.

    Args:
        layers: (module, its own product, what returns its weight as (m, n), what is called with g and x).
    """
    put: list[nn.Module] = []
    try:
        for module, product, weight, collect in layers:
            # without an input that requires a gradient the backward pass would not come here
            anchor = torch.zeros((), requires_grad=True)

            def forward(
                x: Tensor, product: Any = product, weight: Any = weight, collect: Any = collect, anchor: Any = anchor
            ) -> Tensor:
                return _Product.apply(x, anchor, product, weight, collect)

            module.forward = forward
            put.append(module)
        yield
    finally:
        for module in put:
            del module.forward
