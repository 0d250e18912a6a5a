"""Put an adapter that PEFT trained on a model: logits as PEFT's, and it can be trained on, saved and exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorax.adapters.core import Core, Diagonal, Identity
from lorax.adapters.experts.find import layers_of
from lorax.adapters.face import LayerPlan
from lorax.adapters.factors import Factors
from lorax.adapters.handle import Adapters
from lorax.adapters.install import install
from lorax.adapters.kinds import bias_of, effective, factor_dtype, is_linear, kind_of, shape_of
from lorax.adapters.selection.coverage import coverage_of
from lorax.adapters.selection.whole import with_parameters
from lorax.adapters.selection.wrappers import refuse_wrapped
from lorax.adapters.vectors.magnitude import Magnitude
from lorax.errors import UserError, near
from lorax.exports.layout import places_of
from lorax.loading.peft.config import PeftConfig, read_config
from lorax.loading.peft.tensors import read_tensors

MAGNITUDE = "lora_magnitude_vector"
"""PEFT's name of DoRA's lengths of rows."""


@dataclass(frozen=True)
class PeftAdapter:
    """A folder in PEFT's format, as it fits a model."""

    config: PeftConfig
    plans: dict[str, LayerPlan]
    """{layer: its factors, under DoRA with the lengths of the rows}."""
    whole: dict[str, Tensor]
    """{parameter of the model that was trained whole: its value}."""

    def info(self) -> dict[str, Any]:
        """Return where it came from, for `Adapters.info`."""
        return {
            "from": {"format": "peft", "kind": "DORA" if self.config.dora else self.config.kind},
            "targets": sorted(self.plans),
        }


def read(model: nn.Module, path: Path) -> PeftAdapter:
    """Read a folder and fit it to a model, which is not changed.

    Raises:
        UserError: what lorax does not hold exactly, or tensors that do not fit the model or the configuration.
    """
    config = read_config(path)
    tensors = read_tensors(path)
    modules = layers_of(model)
    plans: dict[str, LayerPlan] = {}
    for name, parts in sorted(tensors.factors.items()):
        if name not in modules:
            raise UserError(f"{path}: adapts {name}, which this model lacks; {near(name, modules)}")
        if config.names(name) is False:
            raise UserError(f"{path}: holds factors of {name}, which its target_modules do not name: PEFT ignores them")
        if not is_linear(modules[name]):
            raise UserError(f"{path}: adapts {name}, which is {type(modules[name]).__name__} here, not a linear layer")
        module = modules[name]
        factors = layer_factors(config, name, parts, shape_of(module), factor_dtype(module))
        if factors is not None:
            has_bias = not kind_of(module).plain or bias_of(module) is not None
            plans[name] = with_lengths(config, name, parts, factors, partial(effective, module), has_bias)
    for name, module in modules.items():
        if is_linear(module) and config.names(name) and name not in tensors.factors:
            raise UserError(f"{path}: lacks the factors of {name}, which its target_modules name")
    if not plans:
        raise UserError(f"{path}: every layer's rank is 0: there is nothing to load")
    return PeftAdapter(config, plans, _whole(path, config, tensors.whole, model))


def load(model: nn.Module, path: Path) -> Adapters:
    """Put an adapter in PEFT's format on a model.

    Raises:
        UserError: as `read`; the model is then as it was.
    """
    refuse_wrapped(model)
    found = read(model, path)
    adapters = install(model, found.plans, dropout=found.config.dropout, info=found.info())
    names = {name.rpartition(".")[0] for name in found.whole}
    coverage = coverage_of(model, found.plans, {}, names, [])
    adapters.coverage = coverage
    adapters.train(model.training)  # dropout is off on a model in eval mode
    adapters.train_whole(found.whole)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in found.whole.items():
            parameters[name].copy_(value)
    return adapters


def layer_factors(
    config: PeftConfig, name: str, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype
) -> Factors | None:
    """Return a layer's factors; None where AdaLoRA has left no triplet.

    Args:
        config: what the folder says.
        name: of the layer.
        parts: its tensors, by PEFT's names.
        shape: (m, n).
        dtype: that trains.

    Raises:
        UserError: a factor is missing, or does not fit the layer or the configuration.
    """
    path, core, trained = config.path, cast(Core, Identity()), frozenset("AB")
    more = ("lora_E",) if config.kind == "ADALORA" else (MAGNITUDE,) if config.dora else ()
    wanted = ("lora_A", "lora_B", *more)
    if missing := [part for part in wanted if part not in parts]:
        raise UserError(f"{path}: lacks {missing[0]} of {name}")
    if odd := sorted(parts.keys() - set(wanted)):
        raise UserError(f"{path}: holds {odd[0]} of {name}, which a {config.kind} adapter does not have")
    A, B = parts["lora_A"].to(dtype), parts["lora_B"].to(dtype)
    rank = A.shape[0]
    if B.shape[1] != rank:
        raise UserError(f"{path}: {name} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}: two ranks")
    if config.kind == "ADALORA":
        if rank == 0:
            return None
        E = parts["lora_E"].to(dtype)
        if E.shape != (rank, 1):
            raise UserError(f"{path}: {name} has lora_E {tuple(E.shape)}, where ({rank}, 1) is needed")
        core, trained = Diagonal(E[:, 0].clone()), frozenset("ABM")
    elif rank != (said := config.rules.rank(name, config.rank)):
        raise UserError(f"{path}: {name} has rank {rank}, where its configuration says {said}")
    factors = Factors(B, core, A, config.eta(name, rank), trained)
    try:
        factors.check(name, *shape)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return factors


def with_lengths(
    config: PeftConfig,
    name: str,
    parts: Mapping[str, Tensor],
    factors: Factors,
    weight: Callable[[], Tensor],
    has_bias: bool,
) -> LayerPlan:
    """Return a layer's factors as they are, or under DoRA with the lengths of the rows of W'.

    In training PEFT drops out the input of all that DoRA adds, W0's part included; here dropout acts on the low-rank
    path alone. Without dropout, and in evaluation, the two are equal.

    Args:
        config: what the folder says.
        name: of the layer.
        parts: its tensors, by PEFT's names.
        factors: its low-rank factors.
        weight: gives W0, (m, n).
        has_bias: whether the layer's output is more than x W0^T.

    Raises:
        UserError: another number of lengths than rows.
    """
    if not config.dora:
        return factors
    lengths = parts[MAGNITUDE].to(factors.B.dtype)
    if lengths.shape != (factors.shape[0],):
        needed = f"where ({factors.shape[0]},) is needed"
        raise UserError(f"{config.path}: {name} has {MAGNITUDE} {tuple(lengths.shape)}, {needed}")
    squares = weight().detach().to(lengths.dtype).square().sum(1)
    return Magnitude(factors.B, factors.A, lengths, squares, factors.eta, has_bias)


def _whole(path: Path, config: PeftConfig, tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the trained values of the model's own parameters, by the model's first name of each."""
    ends = tuple(config.rules.modules_to_save or ())  # PEFT adds names of heads that other models have
    saved = [name for name in with_parameters(model) if ends and name.endswith(ends)]
    named = dict(model.named_parameters(remove_duplicate=False))
    places = places_of(model)
    kept: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name not in named:
            raise UserError(f"{path}: holds {name}, which this model lacks; {near(name, named)}")
        if named[name].shape != value.shape:
            shapes = f"{tuple(value.shape)}, here it is {tuple(named[name].shape)}"
            raise UserError(f"{path}: {name} has shape {shapes}")
        asked = any(name.startswith(f"{module}.") for module in saved)
        if not asked and not (config.bias != "none" and name.endswith("bias")):
            if torch.equal(named[name].detach().cpu().to(value.dtype), value):
                continue  # PEFT saves embeddings along when it thinks that they may have changed
            raise UserError(f"{path}: holds {name}, other than this model's, which its modules_to_save do not name")
        others = [place for place in places[id(named[name])] if place != name]
        if odd := [other for other in others if other not in tensors or not torch.equal(tensors[other], value)]:
            raise UserError(
                f"{path}: {name} was trained apart from {odd[0]}, which is one tensor with it in this model"
            )
        first = places[id(named[name])][0]
        kept[first] = value
    for module in saved:
        inside = [name for name in named if name.startswith(f"{module}.")]
        if missing := [name for name in inside if name not in tensors]:
            raise UserError(f"{path}: lacks {missing[0]}, which its modules_to_save name")
    return kept
