"""The public way in: attach adapters to a model, load saved ones."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from lorax.adapters.install import find_targets, install
from lorax.adapters.kinds import shape_of
from lorax.errors import UserError
from lorax.initializers.registry import build, consumed, names
from lorax.probing.probe import layer_generator
from lorax.probing.probe_layers import probe_layers
from lorax.records import knobs

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.face import LayerPlan
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
    **fields: Any,
) -> Adapters:
    """Make a model trainable by a low-rank method; everything else is frozen, step 0 is the base model.

    Args:
        model: changed in place; `adapters.detach()` undoes it.
        init: a registered name (`lorax.names()`), or an instance, which then holds rank and fields.
        rank: inner dimension r; methods without one ignore it.
        alpha: numerator of eta; None takes the method's published default.
        targets: "all-linear", a list of name suffixes, or a regular expression. `init="full"` trains all
            parameters under "all-linear", else the named layers.
        recenter: "carry" leaves W0 untouched, "fold" stores W_fz = W0 - eta B0 M0 A0.
        dropout: probability on the adapters' input, in train mode.
        loss: loss(model, batch) -> scalar, or (scalar, weight), for methods that look at gradients or
            activations; None takes `model(**batch).loss`. Other methods ignore it.
        batches: calibration batches for those methods.
        seed: of random factors and patterns.
        cache: a `Cache` or a folder that keeps decompositions; None keeps none. Same result.
        **fields: the method's own: zeta=16, pattern="banded", scaling="rslora", svd="randomised", ...

    Returns:
        The adapters' handle; for "full" and "none" one with the same methods. `parameter_groups(lr)` gives an
        optimiser its groups (LoRA+ has two rates); `rule` is what the method does around each step, or None.

    Raises:
        UserError: an unknown name, field or target, or a value beyond its bound.

    Examples:
        >>> from torch import nn
        >>> adapters = attach(nn.Sequential(nn.Linear(8, 6)), init="pissa", rank=2)
        >>> adapters.count_trainable()
        28
    """
    if not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout}: a number from 0 up to, not including, 1 is needed")
    if not isinstance(init, str):
        if fields:
            raise UserError(f"init is an instance with its own fields; {', '.join(fields)} cannot be given beside it")
        method = init
    else:
        shared = {"rank": rank, "alpha": alpha} | {key: fields.pop(key) for key in knobs.METHOD if key in fields}
        method = build(init, shared=shared, own=fields)
    named = targets if isinstance(targets, str) else list(targets)
    info = {"init": consumed(method), "targets": named, "seed": seed}
    if not method.has_factors:
        return cast("Adapters", method.install(model, targets, info=info))  # it answers to the same methods
    plans = make_factors(model, method, targets, loss=loss, batches=batches, seed=seed, cache=_opened(cache))
    adapters = install(model, plans, recenter=recenter, dropout=dropout, info=info)
    adapters.rates, adapters.rule = dict(method.rates), method.rule()
    if adapters.rule is not None:
        warnings.warn(
            f"init={method.name} acts while it trains: in a loop of your own call the hooks of `adapters.rule` "
            "(lorax.adapters.face.TrainingRule) around each step",
            stacklevel=2,
        )
    return adapters


def load(model: nn.Module, path: str | os.PathLike[str], check: str = "error") -> Adapters:
    """Put adapters saved by `adapters.save` on a model; no decomposition is repeated.

    Args:
        model: the base they were trained on, untouched.
        path: the folder.
        check: "error" refuses a base whose adapted weights differ from those at saving; "warn" goes on, for
            the same weights in another dtype.

    Raises:
        UserError: no such adapter, or another base.
    """
    from lorax.adapters.load import load as read

    built: list[Initializer] = []

    def build_method(info: dict[str, Any]) -> None:
        saved, known = info.get("init"), names()  # another package's method may be missing here
        if not isinstance(saved, dict) or saved.get("name") not in known:
            return
        fields = {key: value for key, value in saved.items() if key not in ("name", "version", "eta")}
        try:
            built.append(build(saved["name"], own=fields))
        except (UserError, TypeError) as error:
            raise UserError(f"{path}: init={saved['name']} of the saved adapter cannot be built: {error}") from None

    adapters = read(model, Path(path), check=check, accept=build_method)
    if adapters.layer_adapters() and built:
        adapters.rates, adapters.rule = dict(built[0].rates), built[0].rule()
    return cast("Adapters", adapters)


@torch.no_grad()
def make_factors(
    model: nn.Module,
    initializer: Initializer,
    targets: str | Sequence[str] | Mapping[str, nn.Module] = "all-linear",
    *,
    loss: Loss | None = None,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    cache: Cache | None = None,
) -> dict[str, LayerPlan]:
    """Let an initialiser look at every target layer; the model is as before afterwards.

    Args:
        model: the untouched base.
        initializer: one that has factors.
        targets: as `attach`, or {layer name: module} as found.
        loss: as `attach`.
        batches: as `attach`.
        seed: as `attach`.
        cache: as `attach`.

    Returns:
        {layer name: factors}, or another `LayerPlan`; shapes are checked for all layers before any is decomposed.

    Raises:
        UserError: a layer that the method cannot serve; names layer, value and bound.
    """
    at_modules = initializer.adapts == "module"
    named = targets if isinstance(targets, Mapping) else find_targets(model, targets, modules=at_modules)
    layers = dict(named)
    if at_modules:
        return {name: initializer.plan(name, layer, layer_generator(seed, name)) for name, layer in layers.items()}
    for name, module in layers.items():
        initializer.check(name, *shape_of(module))
    return probe_layers(
        model, layers, initializer, initializer.needs, loss=loss, batches=batches, seed=seed, cache=cache
    )


def _opened(cache: Cache | str | os.PathLike[str] | None) -> Cache | None:
    from lorax.probing.cache import Cache

    return cache if cache is None or isinstance(cache, Cache) else Cache(cache)
