"""Subclasses of nn.Linear with a forward of their own that computes x W^T + b (Falcon's): adapted, and run as theirs.

Whether they do is tried out on a few numbers; the base product then is their own call, so that step 0 stays exact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lorax.adapters.kinds import LinearKind, bias_of, holds_weight, is_plain_linear, register_kind, weight_of

_tried: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], bool]] = WeakKeyDictionary()


class OwnForwardKind(LinearKind):
    """A subclass of `nn.Linear` whose own forward computes x W^T + b.

    Args:
        module: the layer; its forward is called on a copy that holds no weight of its own.
    """

    def __init__(self, module: nn.Module):
        self._stand_in = _stand_in(module)

    def forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return x W^T + b by the layer's own forward."""
        return self.product(x, weight_of(module), bias_of(module))

    def own_call(self, module: nn.Module) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """Return what computes (x, weight, bias) -> x W^T + b by the layer's own forward, in the mode of `module`."""
        return self.product

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + b by the layer's own forward, with these tensors."""
        held = cast("dict[str, Tensor | None]", self._stand_in._parameters)
        held.update(weight=weight, bias=bias)
        try:
            return self._stand_in.forward(x)
        finally:
            held.update(weight=None, bias=None)


def computes_linear(module: nn.Module) -> bool:
    """Whether a subclass of `nn.Linear` with its own forward computes x W^T + b; remembered for its weight."""
    if not isinstance(module, nn.Linear) or is_plain_linear(module) or not holds_weight(module):
        return False
    if extra_parts(module):
        return False
    weight = module.weight
    state = (weight.data_ptr(), weight._version)
    if module not in _tried or _tried[module][0] != state:
        _tried[module] = (state, _agrees(module))
    return _tried[module][1]


def extra_parts(module: nn.Module) -> list[str]:
    """Return what a layer holds beside weight and bias: an adapter of its own, say, that is still zero."""
    own = [name for name, p in module._parameters.items() if p is not None and name not in ("weight", "bias")]
    return own + list(module._modules)


@torch.no_grad()
def _agrees(module: nn.Linear) -> bool:
    weight, bias = module.weight, bias_of(module)
    g = torch.Generator().manual_seed(0)
    if weight.is_meta:  # the class's forward, tried on a small layer
        weight, bias = torch.randn(5, 7, generator=g), None if bias is None else torch.randn(5, generator=g)
    x = torch.randn(2, 3, weight.shape[1], generator=g).to(weight)
    kind, expected = OwnForwardKind(module), F.linear(x, weight, bias)
    tolerance = 16 * torch.finfo(weight.dtype).eps * max(1.0, float(expected.abs().max()))
    with torch.random.fork_rng(devices=[]):
        for mode in (True, False):  # noise or dropout inside shows in training mode
            kind._stand_in.training = mode
            try:
                y = kind.product(x, weight, bias)
            except Exception:
                return False
            if not isinstance(y, Tensor) or y.shape != expected.shape or y.dtype != expected.dtype:
                return False
            if not float((y - expected).abs().max()) <= tolerance:
                return False
    return True


def _stand_in(module: nn.Module) -> nn.Module:
    """Return a copy of a layer without weight and hooks; it shares nothing that a forward could change."""
    other = copy.copy(module)
    other._parameters = {name: None for name in module._parameters}
    other._buffers = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    return other


register_kind(computes_linear, OwnForwardKind)
