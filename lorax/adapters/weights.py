"""What adapters make of the weights under them: W' - W0, W_fz, and W' written into the layer."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.kinds import factor_dtype
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.adapters.linear import AdaptedLinear
from lorax.errors import UserError


def own_precision(model: nn.Module) -> AbstractContextManager[object]:
    """Return a context without autocast: a caller's, around a whole loop, would round what is written into weights."""
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def delta(layer: AdaptedLayer, adapter: LayerAdapter, fold: bool) -> Tensor:
    """Return W' - W0, (m, n), float32.

    Args:
        layer: where the adapter is.
        adapter: one run's.
        fold: W_fz is stored in the layer, and its rounding is part of the difference.

    Raises:
        UserError: the adapter is no change of a weight.
    """
    change = adapter.delta(layer.frozen_weight())
    if change is None:
        raise UserError(f"{layer.name}: its adapter is no change of the weight")
    shift = adapter.shift()
    if fold and shift is not None and isinstance(layer, AdaptedLinear):
        exact = layer.start().double() - shift.double()
        change = change.double() + (layer.frozen().double() - exact)
    return change.to(torch.float32)


def frozen_weight(layer: AdaptedLinear, adapter: LayerAdapter, fold: bool) -> Tensor:
    """Return W_fz, (m, n), in the factors' precision: W0 - eta B0 M0 A0 for recentred factors, else W0."""
    dtype, shift = factor_dtype(layer), adapter.shift()
    if fold and shift is not None:
        return layer.frozen().to(dtype)
    return layer.start().to(dtype) if shift is None else layer.start().to(dtype) - shift


def merge(layers: Iterable[AdaptedLinear], number: int) -> None:
    """Write W' into every layer, or into none.

    Args:
        layers: not merged.
        number: the lane whose adapters are merged.

    Raises:
        UserError: an adapter is no change of a weight, or a weight cannot be written.
    """
    merged: list[AdaptedLinear] = []
    try:
        for layer in layers:
            layer.merge(layer.all_adapters()[number])
            merged.append(layer)
    except UserError:
        for layer in merged:
            layer.unmerge()
        raise
