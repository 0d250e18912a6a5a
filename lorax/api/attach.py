"""Attach adapters to a model."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from lorax.adapters.install import install
from lorax.adapters.selection.coverage import Coverage, coverage_of
from lorax.adapters.selection.reached import watch
from lorax.adapters.selection.rules import Rules
from lorax.adapters.selection.whole import parameters_of, with_parameters
from lorax.adapters.selection.wrappers import refuse_wrapped
from lorax.adapters.targets import as_given, said_of, select
from lorax.api.factors import NO_RANK, make_factors
from lorax.architecture.heads import CLASSES, HEAD, said_of_heads, trained_whole
from lorax.errors import UserError
from lorax.initializers.registry import build, consumed, instance
from lorax.probing import CALIBRATED
from lorax.probing.ranks import several, take_from_first
from lorax.probing.unreached import without_unreached
from lorax.records import knobs

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.face import Trainable
    from lorax.adapters.install import Adapters
    from lorax.initializers.base import Initializer
    from lorax.probing.cache import Cache
    from lorax.probing.calibration_pass import Loss


def attach(
    model: nn.Module,
    init: str | Initializer = "lora",
    rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] = "all-linear",
    recenter: str = "carry",
    dropout: float = 0.0,
    loss: Loss | None = None,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    cache: Cache | str | os.PathLike[str] | None = None,
    train_head: bool | Sequence[str] | None = None,
    modules_to_save: Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] | None = None,
    layers_to_transform: int | Sequence[int] | None = None,
    layers_pattern: str | Sequence[str] | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    **fields: Any,
) -> Adapters:
    """Make a model trainable by a low-rank method; everything else is frozen, step 0 is the base model.

    `print(adapters)` and `adapters.coverage` say which share of the weights is adapted and what is left out for what
    reason; what would surprise is said at once, in one warning. Under torch.distributed call it on every rank: the
    gradients and activations are then those of all ranks' batches, and all hold the factors of rank 0.

    Args:
        model: changed in place; `adapters.detach()` undoes it.
        init: a registered name (`lorax.names()`), or an instance, which then holds rank and fields.
        rank: inner dimension r; methods without one ignore it.
        alpha: numerator of eta; None takes the method's published default.
        targets: "all-linear", a list of name suffixes, or a regular expression. `init="full"` trains all
            parameters under "all-linear", else the named layers. "all-linear" leaves out the output head, layers too
            small for the rank, layers whose weight is read without a call, and of a multimodal language model what
            text does not reach.
        recenter: "carry" leaves W0 untouched, "fold" stores W_fz = W0 - eta B0 M0 A0.
        dropout: probability on the adapters' input, in train mode.
        loss: loss(model, batch) -> scalar, or (scalar, weight), for methods that look at gradients or
            activations; None takes `model(**batch).loss`. Other methods ignore it.
        batches: calibration batches for those methods.
        seed: of random factors and patterns.
        cache: a `Cache` or a folder that keeps decompositions; None keeps none. Same result.
        train_head: what trains whole beside the adapters, and is saved and exported with them. None: the head of a
            transformers classifier (fresh parts alone, where `from_pretrained` left some); False: nothing; True: a
            head must be found; a list of module names or suffixes: those.
        modules_to_save: ends of names of further modules that train whole, as PEFT has it; nothing in them is adapted.
        exclude_modules: layers left out, as PEFT has it: names or name suffixes, or an expression for the whole name.
        layers_to_transform: the numbers of the blocks that are adapted, as PEFT has it; None: all.
        layers_pattern: what stands before that number ("layers", "h"); None: anything.
        rank_pattern: {end of a layer's name, as an expression: its rank}, as PEFT has it.
        alpha_pattern: {end of a layer's name, as an expression: its alpha}; a layer without keeps `alpha`, whatever its
            rank, as in PEFT.
        **fields: the method's own: zeta=16, pattern="banded", scaling="rslora", svd="randomised", ...

    Returns:
        The adapters' handle; for "full" and "none" one with the same methods. `parameter_groups(lr)` gives an
        optimiser its groups (LoRA+ has two rates); `rule` is what the method does around each step, or None.

    Raises:
        UserError: an unknown name, field or target, a pattern that matches nothing, or a value beyond its bound.

    Examples:
        >>> from torch import nn
        >>> adapters = attach(nn.Sequential(nn.Linear(8, 6)), init="pissa", rank=2)
        >>> adapters.count_trainable()
        28
    """
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout!r}: a number from 0 up to, not including, 1 is needed")
    if isinstance(init, str):
        shared = {"rank": rank, "alpha": alpha} | {key: fields.pop(key) for key in knobs.METHOD if key in fields}
        method = build(init, shared=shared, own=fields)
    else:
        method = instance(init, fields)
    rules = Rules(exclude_modules, layers_to_transform, layers_pattern, rank_pattern, alpha_pattern, modules_to_save)
    rules.check_method(method)
    named = as_given(targets)
    info = {"init": consumed(method), "targets": named, "seed": seed} | rules.given()
    refuse_wrapped(model)
    heads, fresh = trained_whole(model, train_head, targets) if method.trains else ([], None)
    if rules.modules_to_save and method.trains:
        heads = sorted({*heads, *rules.saved_whole(with_parameters(model))})
    whole = parameters_of(model, heads)
    if not method.has_factors:
        if rules and targets != "all-linear" and method.changes_layers:
            layers = replace(rules, rank_pattern=None, alpha_pattern=None)
            targets = list(select(model, targets, heads, rules=layers).chosen)
        return cast("Adapters", _baseline(model, method, targets, heads, whole, info))  # it has the same methods
    if targets == "all-linear" and method.layers is not None:
        targets = method.layers
    selection = select(model, targets, heads, method.adapts == "module", method.smallest, rules, method.sites)
    left_out = selection.left_out
    if train_head is False:  # as asked for
        left_out = {name: HEAD if why == CLASSES else why for name, why in left_out.items()}
    if batches is not None and method.needs & CALIBRATED:
        batches = list(batches)
    make = partial(
        make_factors, model, method, loss=loss, batches=batches, seed=seed, cache=_opened(cache), rules=rules
    )
    plans, unreached = without_unreached(make, selection.chosen, named=targets != "all-linear")
    given_none = dict.fromkeys(selection.chosen.keys() - plans.keys() - unreached.keys(), NO_RANK)
    coverage = coverage_of(model, plans, left_out | unreached | given_none, heads, targets)
    adapters = install(model, plans, recenter=recenter, dropout=dropout, info=info)
    adapters.rates, adapters.rule = dict(method.rates), method.rule()
    adapters.train_whole(whole)
    adapters.coverage = coverage
    if several() and method.needs & CALIBRATED:
        take_from_first(adapters.state_dict().values())
    watch(adapters.installation)
    _say(coverage, said_of(selection.doubtful), said_of_heads(heads, fresh) if train_head is None else None)
    if adapters.rule is not None:
        warnings.warn(
            f"init={method.name} acts while it trains: in a loop of your own call the hooks of `adapters.rule` "
            "(lorax.adapters.face.TrainingRule) around each step",
            stacklevel=2,
        )
    return adapters


def _baseline(
    model: nn.Module,
    method: Initializer,
    targets: str | Sequence[str],
    heads: Sequence[str],
    whole: Sequence[str],
    info: dict[str, Any],
) -> Trainable:
    """Install a method without factors, with its head."""
    if method.trains and not method.changes_layers and not heads:
        raise UserError(f"init={method.name}: {type(model).__name__} has no head that is known; name it in train_head")
    arm = method.install(model, targets, head=heads, info=info)
    arm.train_whole(whole)
    trained = {place for name in arm.named_parameters() for place in (name, name.rpartition(".")[0])} - {""}
    coverage = coverage_of(model, trained, {}, heads, [])
    arm.coverage = replace(coverage, layers=len(arm.names()))
    return arm


def _say(coverage: Coverage, *lines: str | None) -> None:
    """Log what is covered, and warn of what would surprise."""
    logging.getLogger("lorax").info("%s", coverage)
    for line in (coverage.surprises(), *lines):
        if line is not None:
            warnings.warn(line, stacklevel=3)


def _opened(cache: Cache | str | os.PathLike[str] | None) -> Cache | None:
    from lorax.probing.cache import Cache

    if cache is None or isinstance(cache, Cache):
        return cache
    if not isinstance(cache, str | os.PathLike):
        raise UserError(f"cache={cache!r}: a folder or a Cache is needed")
    return Cache(cache)
