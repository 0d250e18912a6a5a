"""The effective (m, n) weight of a layer, whatever way round its module stores it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorax.adapters.linear import is_conv1d


def oriented(module: nn.Module, stored: Tensor) -> Tensor:
    """Return `stored`, which lies as the module's weight does, as (m, n)."""
    return stored.mT if is_conv1d(module) else stored


def shape_of(module: nn.Module) -> tuple[int, int]:
    """Return (m, n) = (out, in); the weight may lie on the meta device."""
    rows, cols = module.weight.shape
    return (cols, rows) if is_conv1d(module) else (rows, cols)


def factor_dtype(module: nn.Module) -> torch.dtype:
    """Return float64 for a float64 weight, else float32."""
    return torch.float64 if module.weight.dtype == torch.float64 else torch.float32
