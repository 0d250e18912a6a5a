"""Experts held as one 3-D parameter: which matrices they are, and which way round each is stored.

    y = W[e] x        "experts.gate_up_proj" of shape (E, m, n), or (E, n, m) where `x @ W[e]` reads it

Every expert is a layer of its own, "<module>.<parameter>.<e>", to find_targets, initialisers and files.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Hashable, Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorax.adapters.kinds import LinearKind, register_kind
from lorax.errors import UserError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ExpertSlice(nn.Module):
    """One expert's matrix as a layer: what initialisers look at. It is no part of the model and computes nothing.

    Args:
        owner: the module that holds the parameter.
        parameter: its name there.
        index: of the expert.
        transposed: the expert's matrix is stored as (n, m).
    """

    owner: nn.Module
    weight: nn.Parameter
    """All experts' weights, (E, m, n) or (E, n, m): the parameter itself."""

    def __init__(self, owner: nn.Module, parameter: str, index: int, transposed: bool):
        super().__init__()
        self.__dict__["owner"] = owner  # not as its child
        self.parameter, self.index, self.transposed = parameter, index, transposed
        self.register_parameter("weight", owner._parameters[parameter])

    @property
    def takes_lanes(self) -> bool:
        """Whether its owner's rows are the model's tokens in their order, so that lanes can be told apart."""
        return _declared(self.owner) is not None


class ExpertKind(LinearKind):
    """One expert's matrix in a 3-D parameter."""

    plain = False

    def __init__(self, index: int, transposed: bool):
        self.index, self.transposed = index, transposed

    def matrix(self, stored: Tensor) -> Tensor:
        """Return the expert's (m, n) as a view of all experts' weights, or of the expert's own as stored."""
        own = stored[self.index] if stored.ndim == 3 else stored
        return own.mT if self.transposed else own

    def store(self, matrix: Tensor) -> Tensor:
        """Return the matrix the way the expert's own part is stored."""
        return matrix.mT if self.transposed else matrix


register_kind(
    lambda module: isinstance(module, ExpertSlice),
    lambda module: ExpertKind(module.index, module.transposed),  # type: ignore[arg-type]
)


def expert_layers(model: nn.Module, named: bool = False) -> dict[str, nn.Module]:
    """Return {"<module>.<parameter>.<e>": layer} of every expert whose weight can be adapted.

    Args:
        model: any module, on the meta device too.
        named: take any 3-D parameter that is read as a matrix for each index; False: those of classes that are
            called experts or declare themselves so to transformers.
    """
    layers: dict[str, nn.Module] = {}
    for name, owner, key in _candidates(model):
        if not named and not is_experts(owner):
            continue
        turned = transposed(owner, key)
        if turned is not None:
            stack = owner._parameters[key]
            assert stack is not None
            layers |= {f"{name}.{e}": ExpertSlice(owner, key, e, turned) for e in range(len(stack))}
    return layers


def parameter_of(name: str, layer: nn.Module) -> str | None:
    """Return the full name of the parameter that an expert's layer is part of; None for another layer."""
    return name.rpartition(".")[0] if isinstance(layer, ExpertSlice) else None


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: module} of all places where adapters may stand: submodules and experts."""
    return {**dict(model.named_modules()), **expert_layers(model, named=True)}


def refuse_parameter(model: nn.Module, target: str) -> None:
    """Refuse a target that names a parameter and no layer.

    Raises:
        UserError: names the parameter, its shape, and what is in the way.
    """
    for name, parameter in model.named_parameters():
        if name == target or name.endswith(f".{target}"):
            shape, kind = tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")
            owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
            what = f"target {target!r} is a parameter of {owner}, {kind} {shape}"
            if parameter.ndim != 3:
                raise UserError(f"{what}, not a linear layer")
            if parameter.dtype not in _FLOATS:
                raise UserError(f"{what}: only 16-, 32- and 64-bit floats are adapted; load the model unquantised")
            raise UserError(f"{what}: its forward does not tell whether it applies W[e] x or x W[e]; not adapted")


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for path, owner in model.named_modules():
        if type(owner).__module__.startswith("torch.nn"):
            continue
        for key, parameter in owner._parameters.items():
            if parameter is not None and parameter.ndim == 3 and parameter.dtype in _FLOATS and len(parameter) > 0:
                yield (f"{path}.{key}" if path else key), owner, key


def is_experts(owner: nn.Module) -> bool:
    """Whether a module holds experts: by its class's name, or as it tells transformers."""
    return _declared(owner) is not None or "expert" in type(owner).__name__.lower()


def transposed(owner: nn.Module, key: str) -> bool | None:
    """Return whether `owner` applies x @ W[e] (True) or W[e] x (False); None where that cannot be read."""
    declared = _declared(owner)
    if declared is not None:
        return None if "bias" in key else declared
    return _read(cast(Hashable, type(owner)), key)


def _declared(owner: nn.Module) -> bool | None:
    """What transformers' decorator `use_experts_implementation` noted; None without it."""
    own = vars(owner)
    return bool(own["is_transposed"]) if {"is_transposed", "has_gate", "has_bias"} <= own.keys() else None


@cache
def _read(cls: Any, key: str) -> bool | None:
    try:
        source = inspect.getsource(cls.forward)
    except (OSError, TypeError):
        return None
    name = rf"self\.{re.escape(key)}\b"
    plain = re.search(rf"\blinear\([^\n]*,\s*{name}\[", source) is not None
    turned = re.search(rf"(?:@\s*{name}(?:\[\w+\])?(?!\.)|\b(?:bmm|matmul)\([^\n]*,\s*{name}(?:\[\w+\])?\s*\))", source)
    return None if plain == (turned is not None) else not plain
