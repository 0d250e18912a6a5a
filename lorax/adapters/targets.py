"""Which layers to adapt, by name, and why others are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lorax.adapters.experts.find import ExpertSlice, expert_layers, parameter_of, refuse_parameter
from lorax.adapters.kinds import is_linear, shape_of
from lorax.adapters.linears.unfit import unfit
from lorax.adapters.selection.coverage import UNNAMED, abbreviated
from lorax.adapters.selection.rules import NO_RULES, Rules
from lorax.adapters.selection.wrappers import refuse_wrapped, unsuitable
from lorax.architecture.heads import output_heads
from lorax.architecture.reads import SOMETIMES, how_read
from lorax.architecture.towers import OUTSIDE, outside_the_language_model
from lorax.errors import UserError, near

Sites = Callable[[nn.Module], Iterable[str]]


@dataclass(frozen=True)
class Selection:
    """Which modules are adapted, and which of those that the targets cover are not."""

    chosen: dict[str, nn.Module]
    """{name: module}, ordered by name."""
    left_out: dict[str, str]
    """{name: reason}."""
    doubtful: list[str]
    """Chosen because they were named, though their weight is also read without a call in some branches."""


def select(
    model: nn.Module,
    targets: str | Sequence[str] = "all-linear",
    head: Iterable[str] | None = None,
    modules: bool = False,
    smallest: int = 1,
    rules: Rules = NO_RULES,
    sites: Sites | None = None,
) -> Selection:
    """Return the linear layers to adapt, and those that are left out with the reason.

    Args:
        model: any module, on the meta device too. Linear means a layer of a known kind (`lorax.adapters.kinds`)
            and experts held as one 3-D parameter, a layer each: "<module>.<parameter>.<e>", named by their parameter
            ("gate_up_proj", "experts.gate_up_proj") or one by one.
        targets: "all-linear" (every linear layer but the output head and `head`, of a multimodal model those of its
            language model); a list of name suffixes ("q_proj", "self_attn.q_proj"); or a regular expression that must
            match the name, or its tail from a dot on.
        head: names of modules trained whole, left out with all inside them however targets are named.
        modules: take any submodule that `targets` name, not linear layers alone.
        smallest: under "all-linear", layers with a smaller min(m, n) are left out; of named ones the method refuses
            them itself.
        rules: what PEFT's users set beside the targets.
        sites: sites(model) -> names of the submodules where a method that adapts modules stands under "all-linear".

    Raises:
        UserError: the model is wrapped by others or has adapters; nothing matches; a suffix matches no linear layer, or
            only layers that cannot be adapted; the expression is invalid; a rule that does nothing.
    """
    refuse_wrapped(model)
    named = dict(model.named_modules())
    own = list(sites(model)) if modules and targets == "all-linear" and sites is not None else []
    if modules and targets == "all-linear" and not own:
        raise UserError("targets='all-linear': this method adapts whole modules; name them, such as targets=[mlp]")
    linear = {name: module for name, module in named.items() if name and (modules or is_linear(module))}
    if not modules:
        linear |= expert_layers(model, named=targets != "all-linear")
    left_out: dict[str, str] = {}
    if own:
        chosen = set(own) - _inside(own, outside_the_language_model(named))
        left_out |= {name: UNNAMED for name in named if is_linear(named[name]) and not _inside([name], chosen)}
    elif targets == "all-linear":
        chosen = set(linear)
        heads, outside = output_heads(named), outside_the_language_model(named)
        left_out |= _unfit(named, {*(head or ()), *heads, *outside})
        for top, why in heads.items():
            left_out |= dict.fromkeys(_inside(chosen, {top}), why)
        left_out |= dict.fromkeys(_inside(chosen, outside) - left_out.keys(), OUTSIDE)
    elif isinstance(targets, str):
        chosen = _by_expression(targets, linear)
    else:
        chosen = _by_suffix([str(target) for target in targets], linear, named, model)
    chosen -= _inside(chosen, set(head or ())) | left_out.keys()
    rules.check_excluded(named, linear)
    left_out |= rules.left_out(sorted(chosen), targets)
    chosen -= left_out.keys()
    if not modules:
        left_out |= _not_adaptable({name: linear[name] for name in chosen}, named, targets)
        left_out |= too_small(
            {name: shape_of(linear[name]) for name in chosen - left_out.keys()}, smallest, targets, rules
        )
    chosen -= left_out.keys()
    rules.check_patterns(chosen or named)
    if not chosen:
        why = next((f" ({name}: {reason})" for name, reason in left_out.items()), "")
        hint = near("", _suffixes(linear)) if linear else "the model has no linear layer of a known kind"
        if is_linear(model):
            hint = "the model is itself a layer, which cannot be replaced in it: put it in an nn.Sequential"
        raise UserError(f"targets={targets!r} leave no layer to adapt{why}; {hint}")
    doubtful = [] if modules else sorted(n for n in chosen & named.keys() if how_read(n, named) is not None)
    return Selection({name: linear[name] for name in sorted(chosen)}, dict(sorted(left_out.items())), doubtful)


def as_given(targets: object) -> str | list[str]:
    """Return targets as a text or a list of texts.

    Raises:
        UserError: they are neither.
    """
    if isinstance(targets, str):
        return targets
    given = list(targets) if isinstance(targets, Iterable) else []
    texts = [target for target in given if isinstance(target, str)]
    if len(texts) < len(given) or not isinstance(targets, Iterable):
        raise UserError(f"targets={targets!r}: 'all-linear', a list of layer names or a regular expression is needed")
    return texts


def said_of(doubtful: Sequence[str]) -> str | None:
    """Return the line about named layers whose weight is also read without a call, or None."""
    if not doubtful:
        return None
    return f"{abbreviated(doubtful)}: {SOMETIMES}; where it is (a fused kernel), the adapter there does nothing"


def find_targets(
    model: nn.Module,
    targets: str | Sequence[str] = "all-linear",
    head: Iterable[str] | None = None,
    modules: bool = False,
    smallest: int = 1,
    rules: Rules = NO_RULES,
    sites: Sites | None = None,
) -> dict[str, nn.Module]:
    """Return the modules that `select` chooses, {name: module}."""
    return select(model, targets, head, modules, smallest, rules, sites).chosen


def too_small(
    shapes: Mapping[str, tuple[int, int]], smallest: int, targets: str | Sequence[str], rules: Rules = NO_RULES
) -> dict[str, str]:
    """Return {name: reason} of the layers that a method cannot serve; nothing where targets are named.

    Where every layer is too small none is left out, so that the method's own check refuses the largest.

    Args:
        shapes: {name: (m, n)}.
        smallest: the smallest min(m, n) that the method serves.
        targets: as asked for.
        rules: a layer that its rank_pattern names needs that rank.
    """
    if targets != "all-linear":
        return {}
    bounds = {name: rules.rank(name, smallest) for name in shapes}
    small = {name for name, shape in shapes.items() if min(shape) < bounds[name]}
    if len(small) == len(shapes):
        return {}
    return {name: f"min(m, n) = {min(shapes[name])} is smaller than the rank needs ({bounds[name]})" for name in small}


def _not_adaptable(
    chosen: Mapping[str, nn.Module], named: Mapping[str, nn.Module], targets: str | Sequence[str]
) -> dict[str, str]:
    """Return {name: reason} of layers where an adapter would not do what it says.

    Raises:
        UserError: a name in a list of targets stands for such layers alone.
    """
    reasons: dict[str, str] = {}
    for name, module in chosen.items():
        why = None if isinstance(module, ExpertSlice) else unsuitable(module) or how_read(name, named)
        if why is not None and (why != SOMETIMES or targets == "all-linear"):
            reasons[name] = why
    for target in () if isinstance(targets, str) else targets:
        matching = {name for name, module in chosen.items() if _is_called(str(target), name, module)}
        if matching and matching <= reasons.keys():
            name = min(matching)
            raise UserError(f"target {target!r} cannot be adapted ({name}): {reasons[name]}")
    return reasons


def _unfit(named: Mapping[str, nn.Module], aside: set[str]) -> dict[str, str]:
    """Return {name: reason} of the layers, but for those in `aside`, that look linear and cannot be adapted."""
    reasons = {name: why for name, module in named.items() if name and (why := unfit(module)) is not None}
    return {name: reasons[name] for name in reasons.keys() - _inside(reasons, aside)}


def _inside(names: Iterable[str], tops: set[str]) -> set[str]:
    """Return the names that are one of `tops` or lie inside one."""
    return {name for name in names if any(name == top or name.startswith(f"{top}.") for top in tops)}


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
        matching = {name for name, module in linear.items() if _is_called(target, name, module)}
        if not matching:
            kinds = {type(module).__name__ for name, module in modules.items() if name and _ends(name, target)}
            reasons = [why for name, module in modules.items() if _ends(name, target) and (why := unfit(module))]
            if reasons:
                raise UserError(f"target {target!r} cannot be adapted: {reasons[0]}")
            if kinds:
                inside = {name: linear[name] for name in linear if f".{target}." in f".{name}"}
                hint = f"; inside it: {', '.join(_suffixes(inside)[:6])}" if inside else ""
                raise UserError(f"target {target!r} is {' and '.join(sorted(kinds))}, not a linear layer{hint}")
            refuse_parameter(model, target)
            raise UserError(f"target {target!r} matches no layer; {near(target, _options(target, linear))}")
        chosen |= matching
    return chosen


def _names(name: str, module: nn.Module) -> list[str]:
    """The names by which a layer is called: an expert's are its own and its parameter's."""
    parameter = parameter_of(name, module)
    return [name] if parameter is None else [name, parameter]


def _is_called(target: str, name: str, module: nn.Module) -> bool:
    return any(_ends(own, target) for own in _names(name, module))


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _suffixes(linear: dict[str, nn.Module]) -> list[str]:
    return sorted({_names(name, module)[-1].rsplit(".", 1)[-1] for name, module in linear.items()})


def _options(target: str, linear: dict[str, nn.Module]) -> list[str]:
    whole = sorted({_names(name, module)[-1] for name, module in linear.items()})
    return whole if "." in target else _suffixes(linear)
