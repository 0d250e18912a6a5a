"""Kinds of layers: how a module holds its (m, n) weight. A new kind is a class here, or `register_kind` elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.face import LayerKind
from lorax.errors import UserError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LinearKind:
    """`nn.Linear`: y = x W^T + b, W stored as (m, n)."""

    writable = True
    plain = True
    transposed = False

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """Return (m, n)."""
        m, n = self.matrix(weight_of(module)).shape
        return m, n

    def weight(self, module: nn.Module) -> Tensor:
        """Return W, (m, n), as a view of what is stored."""
        return self.matrix(weight_of(module).detach())

    def matrix(self, stored: Tensor) -> Tensor:
        """Return what is stored: it is (m, n)."""
        return stored

    def store(self, matrix: Tensor) -> Tensor:
        """Return the matrix as it is."""
        return matrix

    def forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return x W^T + b."""
        return F.linear(x, weight_of(module), bias_of(module))

    def inputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return x: its last dim is n."""
        return x

    def rows(self, output: Tensor) -> Tensor:
        """Return the output: its last dim is m."""
        return output

    def outputs(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return the rows as they are."""
        return rows


class Conv1DKind(LinearKind):
    """transformers' `Conv1D` (GPT-2): y = x W^T + b, W stored transposed, as (n, m)."""

    transposed = True

    def matrix(self, stored: Tensor) -> Tensor:
        """Return the transpose of what is stored, as a view."""
        return stored.mT

    def store(self, matrix: Tensor) -> Tensor:
        """Return the transposed matrix, as a view."""
        return matrix.mT

    def forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return x W^T + b by the same call as `Conv1D.forward`."""
        weight, bias = weight_of(module), cast(Tensor, bias_of(module))
        y = torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight)
        return y.view(*x.shape[:-1], weight.shape[1])


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D, without importing transformers."""
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils" and holds_weight(module)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether this is an `nn.Linear`, or a subclass that keeps its forward."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and holds_weight(module)


def holds_weight(module: nn.Module) -> bool:
    """Whether a layer stores weight and bias as floats: neither quantised, nor computed, nor still without shape."""
    weight = module._parameters.get("weight")
    if weight is None or is_lazy(weight) or weight.dtype not in _FLOATS or "bias" not in module._parameters:
        return False
    return weight.ndim == 2 and type(weight).__module__.startswith("torch.")  # no other package's tensor class


_KINDS: list[tuple[Callable[[nn.Module], bool], Callable[[nn.Module], LayerKind]]] = [
    (is_plain_linear, lambda module: LinearKind()),
    (is_conv1d, lambda module: Conv1DKind()),
]


def register_kind(applies: Callable[[nn.Module], bool], make: Callable[[nn.Module], LayerKind]) -> None:
    """Make a kind of layer known.

    Args:
        applies: whether a module is of this kind; the kinds registered earlier are asked first.
        make: returns the kind of one module, which may hold its stride, its block size, ...
    """
    _KINDS.append((applies, make))


def find_kind(module: nn.Module) -> LayerKind | None:
    """Return how a module holds its (m, n) weight, or None where it has none, or is adapted already."""
    return next((make(module) for applies, make in _KINDS if applies(module)), None)


def kind_of(module: nn.Module) -> LayerKind:
    """Return how a module, which may be adapted already, holds its (m, n) weight.

    Raises:
        UserError: it is no layer of a known kind.
    """
    kind = module.kind if isinstance(module, AdaptedLayer) else find_kind(module)
    if kind is None:
        raise UserError(f"{type(module).__name__} is not a linear layer")
    return kind


def is_linear(module: nn.Module) -> bool:
    """Whether the module has an (m, n) weight that can be adapted."""
    return find_kind(module) is not None


def effective(module: nn.Module) -> Tensor:
    """Return a layer's weight as (m, n), whatever way it is stored."""
    return kind_of(module).weight(module)


def shape_of(module: nn.Module) -> tuple[int, int]:
    """Return (m, n) = (out, in); the weight may lie on the meta device."""
    return kind_of(module).shape(module)


def oriented(module: nn.Module, stored: Tensor) -> Tensor:
    """Return a tensor in the layout of the module's stored weight (its gradient) as (m, n)."""
    return kind_of(module).matrix(stored)


def factor_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype that factors of this layer train in: float64 for a float64 weight, else float32."""
    return torch.float64 if weight_of(module).dtype == torch.float64 else torch.float32


def linear_with(weight: Tensor) -> nn.Linear:
    """Return a frozen `nn.Linear` without bias around an (m, n) weight, which is not copied."""
    m, n = weight.shape
    layer = nn.Linear(n, m, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def weight_of(module: nn.Module) -> Tensor:
    """Return the stored weight."""
    return cast(Tensor, module.weight)


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias, if the module has one."""
    return cast("Tensor | None", getattr(module, "bias", None))
