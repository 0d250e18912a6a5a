"""Why a layer that looks linear is not adapted, and what to do."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.kinds import holds_weight, is_linear
from lorax.adapters.linears.own_forward import extra_parts
from lorax.adapters.linears.quantised_form import refusal

_PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "torch.ao": "torch.ao",
    "gptqmodel": "GPTQ",
    "auto_gptq": "GPTQ",
    "awq": "AWQ",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "quanto": "quanto",
    "optimum.quanto": "quanto",
}


def unfit(module: nn.Module) -> str | None:
    """Return why a layer that looks linear cannot be adapted and what to do, in one clause.

    Returns:
        None for a layer that is adapted, and for a module that is no linear layer of any sort.
    """
    if isinstance(module, AdaptedLayer) or is_linear(module) or not looks_linear(module):
        return None
    kind, weight = type(module).__name__, vars(module).get("_parameters", {}).get("weight")
    if weight is not None and is_lazy(weight):
        return f"{kind} has no shape yet; run one batch through the model first"
    if parametrize.is_parametrized(module):
        of = ", ".join(sorted(module.parametrizations))  # type: ignore[arg-type]
        return f"{kind} computes its {of} (parametrizations); torch.nn.utils.parametrize.remove_parametrizations first"
    if (why := refusal(module)) is not None:
        return why
    package = quantised_by(module)
    if package is not None:
        return f"{kind} is quantised ({package}); load the model unquantised, and quantise after export_merged"
    if weight is None:
        made = [name for name in module._parameters if name.startswith("weight_")]
        if made:
            return f"{kind} computes its weight from {' and '.join(made)} (norm or pruning); remove that first"
        return f"{kind} holds no weight as a floating-point matrix; load the model unquantised"
    if not holds_weight(module):
        dtype = str(weight.dtype).removeprefix("torch.")
        return f"{kind} has a weight of type {type(weight).__name__}, {dtype}; 16-, 32- and 64-bit floats are adapted"
    if extra := extra_parts(module):
        return f"{kind} has a forward of its own and holds {', '.join(extra[:3])} beside weight and bias"
    return f"{kind} has a forward of its own that is not x W^T + b"


def looks_linear(module: nn.Module) -> bool:
    """Whether a module is, or calls itself, a linear layer."""
    named = "linear" in type(module).__name__.lower() and {"in_features", "out_features"} <= dir_of(module)
    return isinstance(module, nn.Linear) or named


def dir_of(module: nn.Module) -> set[str]:
    """Return the names of a module's own attributes, its class's properties included."""
    return {*vars(module), *(name for cls in type(module).__mro__ for name in vars(cls))}


def quantised_by(module: nn.Module) -> str | None:
    """Return the package whose class a layer or its weight is, where that is one of quantised layers."""
    weight = vars(module).get("_parameters", {}).get("weight")
    kinds = [*type(module).__mro__, *(() if weight is None else (type(weight), type(getattr(weight, "data", weight))))]
    for kind in kinds:
        for prefix, package in _PACKAGES.items():
            if f"{kind.__module__}.".startswith(f"{prefix}."):
                return package
    integers = weight is not None and not (torch.is_floating_point(weight) or torch.is_complex(weight))
    return "integer weight" if integers else None
