"""The frozen layer's own product, on all tokens or on those that are no padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Product = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""product(x, weight as stored, bias) -> x W^T + b, (..., m)."""


def base_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transposed: bool,
    unpadded: Tensor | None = None,
    own: Product | None = None,
) -> Tensor:
    """Return x W^T + b by the same call as the replaced module's.

    Args:
        x: (..., n).
        weight: as stored, (m, n), or (n, m) where `transposed`.
        bias: (m,).
        transposed: whether the weight is stored as (n, m).
        unpadded: flat indices of the tokens that are no padding, where these are known; the others get 0.
        own: the replaced module's own call, where that is no `F.linear`.
    """
    if unpadded is not None:
        out = on_rows(x.flatten(0, 1), unpadded, lambda rows: base_product(rows, weight, bias, transposed, None, own))
        return out.view(*x.shape[:-1], -1)
    if own is not None:
        return own(x, weight, bias).contiguous()
    if not transposed:
        return F.linear(x, weight, bias)
    return torch.addmm(cast(Tensor, bias), x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])


def on_rows(x: Tensor, chosen: Tensor | None, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Return product(x), (T, p), computed for some rows only; the others are 0.

    Args:
        x: (T, n).
        chosen: flat indices of the rows; None: all of them.
        product: (rows, n) -> (rows, p).
    """
    if chosen is None:
        return product(x)
    part = product(x.index_select(0, chosen))
    return part.new_zeros(x.shape[0], part.shape[1]).index_copy_(0, chosen, part)
