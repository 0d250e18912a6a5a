"""Cross-entropy of many labels over a large vocabulary without their logits: computed some rows at a time.

    loss_i = logsumexp(W h_i + b) - (W h_i + b)[y_i]           h: (N, n), W: (V, n)
    dloss_i / dh_i = W^T (softmax(W h_i + b) - e_{y_i})

A frozen head needs no gradient, so what the backward pass needs is one row of n numbers a label, which the forward
pass makes while a chunk's logits are there: nothing is computed twice, and only a chunk of (N, V) exists at a time.
`F.linear_cross_entropy` (torch 2.13) does the same, but gives the labels' losses in the dtype of the products
(bfloat16: three digits), and without a sum, which K runs in a batch need, took four times as long on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

FROM = 1 << 27
"""Logits from which they are computed in chunks: half a gigabyte in fp32. Fewer are computed at once, as ever."""
CHUNK = 1 << 25
"""Logits of a chunk."""


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each label, (N,), computed in fp32 or better.

    Args:
        logits: (N, V).
        targets: (N,) the right token or class.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return nn.functional.cross_entropy(wide, targets, reduction="none")


def rows_at_once(vocabulary: int) -> int:
    """Return how many rows of logits a chunk has."""
    return max(1, CHUNK // vocabulary)


def chunked_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each label, (N,), for a frozen head.

    Args:
        hidden: (N, n), in the dtype of the products.
        weight: (V, n), the same.
        bias: (V,) or None.
        targets: (N,).
    """
    return _Chunked.apply(hidden, weight, bias, targets)


def recomputed_losses(hidden: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int, targets: Tensor) -> Tensor:
    """Return the same for any head, one that trains too; a chunk's logits are computed again in the backward pass.

    Args:
        hidden: (N, n).
        head: maps rows of hidden states to rows of logits.
        vocabulary: V.
        targets: (N,).
    """

    def part(rows: Tensor, labels: Tensor) -> Tensor:
        return token_losses(head(rows), labels)

    size = rows_at_once(vocabulary)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(part, rows, labels, **options) for rows, labels in chunks])


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        size = rows_at_once(len(weight))
        differentiates = ctx.needs_input_grad[0]
        slopes = torch.empty_like(hidden) if differentiates else None
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        losses = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = nn.functional.linear(hidden[part], weight, bias)
            losses[part] = token_losses(logits, targets[part])
            if slopes is not None:
                slope = torch.softmax(logits.to(wide), -1)
                del logits
                slope.scatter_add_(1, targets[part, None], slope.new_full((len(slope), 1), -1.0))
                torch.mm(slope.to(hidden.dtype), weight, out=slopes[part])
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return None if slopes is None else (slopes * g[:, None]).to(slopes.dtype), None, None, None
