"""Which linear layers to adapt, by name."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import Any, cast

from torch import nn

from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.experts.find import expert_layers, parameter_of, refuse_parameter
from lorax.adapters.kinds import is_linear
from lorax.adapters.linears.unfit import unfit
from lorax.errors import UserError, near

_HEADS = ("score", "classifier", "classification_head")
_ASIDE = {"__init__", "_init_weights", "reset_parameters", "_reset_parameters", "tie_weights", "extra_repr"}
_META = "dtype|device|shape|ndim|size|dim|numel|requires_grad|is_meta|element_size"


def find_targets(
    model: nn.Module,
    targets: str | Sequence[str] = "all-linear",
    head: Iterable[str] | None = None,
    modules: bool = False,
) -> dict[str, nn.Module]:
    """Return the linear layers to adapt, ordered by name.

    Args:
        model: any module, on the meta device too. Linear means `nn.Linear` and transformers' `Conv1D`.
        targets: "all-linear" (every linear layer and expert but the output head and `head`); a list of name
            suffixes ("q_proj", "self_attn.q_proj"); or a regular expression that must match the
            name, or its tail from a dot on.
        head: names of modules trained whole, left out with all inside them however targets are named.
        modules: take any submodule that `targets` name, not linear layers alone.

    Returns:
        {name: module}. Experts held as one 3-D parameter are a layer each, "<module>.<parameter>.<e>", and are
        named by their parameter ("gate_up_proj", "experts.gate_up_proj") or one by one. Layers whose weight is
        read by their parent without calling the layer (`nn.MultiheadAttention.out_proj`) are left out with a
        warning: an adapter there would silently do nothing.

    Raises:
        UserError: nothing matches, a suffix matches no linear layer, or the expression is invalid.
    """
    named = dict(model.named_modules())
    if any(isinstance(module, AdaptedLayer) for module in named.values()):
        raise UserError("this model has adapters already; detach() them first")
    if modules and targets == "all-linear":
        raise UserError("targets='all-linear': this method adapts whole modules; name them, such as targets=[mlp]")
    linear = {name: module for name, module in named.items() if name and (modules or is_linear(module))}
    if not modules:
        linear |= expert_layers(model, named=targets != "all-linear")
    if targets == "all-linear":
        chosen = _without(set(linear), _heads(model, named))
    elif isinstance(targets, str):
        chosen = _by_expression(targets, linear)
    else:
        chosen = _by_suffix([str(target) for target in targets], linear, named, model)
    chosen = _without(chosen, set(head or ()))
    unread = {name for name in chosen if not modules and _read_uncalled(name, named)}
    if unread:
        warnings.warn(
            f"left out {', '.join(sorted(unread))}: the parent reads the weight without calling the layer",
            stacklevel=2,
        )
    searched = _without(set(named), {*(head or ()), *_heads(model, named)}) if targets == "all-linear" else set()
    others = _unfit({name: module for name, module in named.items() if name in searched})
    if not chosen - unread:
        why = next((f"{names[0]}: {reason}" for reason, names in others.items()), near("", _suffixes(linear)))
        raise UserError(f"targets={targets!r} leave no layer to adapt; {why}")
    for reason, names in others.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warnings.warn(f"left out {names[0]}{more}: {reason}", stacklevel=2)
    return {name: linear[name] for name in sorted(chosen - unread)}


def _unfit(modules: dict[str, nn.Module]) -> dict[str, list[str]]:
    """Return {reason: names} of the layers that look linear and cannot be adapted."""
    reasons: dict[str, list[str]] = {}
    for name, module in modules.items():
        if (why := unfit(module)) is not None:
            reasons.setdefault(why, []).append(name)
    return reasons


def _without(names: set[str], aside: set[str]) -> set[str]:
    """Leave out modules that are named in `aside` or lie inside one that is."""
    return {name for name in names if not any(name == a or name.startswith(f"{a}.") for a in aside)}


def _heads(model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
    names = {name for name in _HEADS if isinstance(getattr(model, name, None), nn.Module)}
    get_output: Any = getattr(model, "get_output_embeddings", None)  # transformers' models have it
    output = get_output() if get_output is not None else None
    return names | {name for name, module in modules.items() if module is output}


def _by_expression(targets: str, linear: dict[str, nn.Module]) -> set[str]:
    try:
        pattern = re.compile(rf"(?:.*\.)?(?:{targets})")
    except re.error as error:
        raise UserError(f"targets={targets!r} is not a regular expression: {error}") from None
    chosen = {name for name, module in linear.items() if any(map(pattern.fullmatch, _names(name, module)))}
    if not chosen:
        raise UserError(f"targets={targets!r} match no linear layer; {near(targets, _options(targets, linear))}")
    return chosen


def _by_suffix(
    targets: list[str], linear: dict[str, nn.Module], modules: dict[str, nn.Module], model: nn.Module
) -> set[str]:
    chosen: set[str] = set()
    for target in targets:
        if target == "all-linear":
            raise UserError("targets: 'all-linear' stands alone, not in a list")
        matching = {name for name, module in linear.items() if any(_ends(n, target) for n in _names(name, module))}
        if not matching:
            kinds = {type(module).__name__ for name, module in modules.items() if name and _ends(name, target)}
            reasons = [why for name, module in modules.items() if _ends(name, target) and (why := unfit(module))]
            if reasons:
                raise UserError(f"target {target!r} cannot be adapted: {reasons[0]}")
            if kinds:
                raise UserError(f"target {target!r} is {' and '.join(sorted(kinds))}, not a linear layer")
            refuse_parameter(model, target)
            raise UserError(f"target {target!r} matches no layer; {near(target, _options(target, linear))}")
        chosen |= matching
    return chosen


def _names(name: str, module: nn.Module) -> list[str]:
    """The names by which a layer is called: an expert's are its own and its parameter's."""
    parameter = parameter_of(name, module)
    return [name] if parameter is None else [name, parameter]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _suffixes(linear: dict[str, nn.Module]) -> list[str]:
    return sorted({_names(name, module)[-1].rsplit(".", 1)[-1] for name, module in linear.items()})


def _options(target: str, linear: dict[str, nn.Module]) -> list[str]:
    whole = sorted({_names(name, module)[-1] for name, module in linear.items()})
    return whole if "." in target else _suffixes(linear)


def _read_uncalled(name: str, modules: dict[str, nn.Module]) -> bool:
    parts = name.split(".")
    for depth in range(len(parts)):
        parent = modules.get(".".join(parts[:depth]))
        if parent is not None and _reads(cast(Hashable, type(parent)), ".".join(parts[depth:])):
            return True
    return False


@cache
def _reads(kind: Any, child: str) -> bool:
    """Whether a method that runs in a forward pass takes `self.<child>.weight` as a number, not its dtype."""
    needed = {*child.split("."), "weight"}
    for base in kind.__mro__:
        for name, member in vars(base).items():
            if name in _ASIDE or not inspect.isfunction(member) or not needed <= set(member.__code__.co_names):
                continue
            try:
                source = inspect.getsource(member)
            except (OSError, TypeError):
                continue
            source = re.sub(r"(?:isinstance|hasattr)\(\s*self\.[\w.]+\.weight\b", "", source)
            if re.search(rf"\bself\.{re.escape(child)}\.weight\b(?!\.(?:{_META})\b)(?!\s*=[^=])", source):
                return True
    return False
