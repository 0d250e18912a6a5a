"""install: put an initialiser's plans on a model as trainable layers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.dropout import quantise
from lorax.adapters.experts.adapted import AdaptedExpert
from lorax.adapters.experts.find import ExpertSlice, layers_of
from lorax.adapters.face import LayerPlan
from lorax.adapters.files.trainer import patch_checkpoints
from lorax.adapters.handle import Adapters
from lorax.adapters.installation import Installation
from lorax.adapters.kinds import is_linear
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.adapters.linear import AdaptedLinear
from lorax.adapters.linears.quantised import LateDequantising
from lorax.adapters.module import AdaptedModule
from lorax.adapters.pack_state import PackState
from lorax.adapters.selection.fast_path import FastPath
from lorax.adapters.selection.wrappers import refuse_wrapped
from lorax.adapters.targets import find_targets
from lorax.adapters.weights import own_precision
from lorax.errors import UserError, near

__all__ = ["Adapters", "find_targets", "install"]
RECENTER = ("carry", "fold")
Plan = TypeVar("Plan", bound=LayerPlan)


@overload
def install(
    model: nn.Module,
    plans: dict[str, Plan],
    recenter: str = "carry",
    dropout: float = 0.0,
    info: dict[str, Any] | None = None,
) -> Adapters: ...


@overload
def install(
    model: nn.Module,
    plans: Sequence[dict[str, Plan]],
    recenter: str = "carry",
    dropout: float | Sequence[float] = 0.0,
    info: Sequence[dict[str, Any]] | None = None,
) -> list[Adapters]: ...


def install(
    model: nn.Module,
    plans: dict[str, Plan] | Sequence[dict[str, Plan]],
    recenter: str = "carry",
    dropout: float | Sequence[float] = 0.0,
    info: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
) -> Adapters | list[Adapters]:
    """Replace the named layers by adapted ones and freeze everything else.

    Args:
        model: changed in place; `Adapters.detach` undoes it.
        plans: {layer name: plan}, a plan being `Factors` for a linear layer, or another `LayerPlan`, which may
            also stand at a submodule with one tensor in and out; or a list of such mappings, one for each
            run, for a pack of K runs on one base.
        recenter: "carry" leaves W0 untouched and adds telescoped differences; "fold" writes
            W_fz = W0 - eta B0 M0 A0 into the weight of recentred factors (one lane only; W0 is kept
            in memory for `disabled`, `delta` and `detach`).
        dropout: probability on the adapters' input, one for all lanes or one for each.
        info: plain data that `save` writes beside the tensors, one, or one for each lane.

    Returns:
        The adapters; a list of them, one for each run in order, if a list was given.

    Raises:
        UserError: an unknown layer, a shape that does not fit, fold with several lanes or on a tied weight.
    """
    several = not isinstance(plans, dict)
    by_lane = list(cast("Sequence[dict[str, LayerPlan]]", plans)) if several else [cast("dict[str, LayerPlan]", plans)]
    drops = list(dropout) if isinstance(dropout, Sequence) else [dropout] * len(by_lane)
    infos = list(info) if isinstance(info, Sequence) else [info or {}] * len(by_lane)
    refuse_wrapped(model)
    modules = layers_of(model)
    _check(modules, by_lane, recenter, several, drops, infos)
    installation = Installation(model, PackState(len(by_lane)))
    layers: dict[str, AdaptedLayer] = {}
    for name in sorted(set().union(*by_lane)):
        base = modules[name]
        shared = _Shared()
        adapters = {
            lane: placed(plan[name], base).build(fold=recenter == "fold", dropout=drops[lane], share=shared)
            for lane, plan in enumerate(by_lane)
            if name in plan
        }
        layers[name] = adapted_layer(base, adapters, installation.pack, name)
    installation.freeze()
    installation.put(layers)
    installation.on_restore(FastPath(model, layers).restore)
    installation.on_restore(LateDequantising(model, layers.values()).restore)
    handles = [Adapters(installation, lane, recenter, drops[lane], dict(infos[lane])) for lane in range(len(by_lane))]
    if recenter == "fold":
        _fold(installation, handles[0])
    patch_checkpoints(installation, handles)
    return handles if several else handles[0]


def _check(
    modules: dict[str, nn.Module],
    by_lane: list[dict[str, LayerPlan]],
    recenter: str,
    several: bool,
    drops: list[float],
    infos: list[dict[str, Any]],
) -> None:
    if recenter not in RECENTER:
        raise UserError(f"recenter={recenter!r}; {near(recenter, RECENTER)}")
    if recenter == "fold" and several:
        raise UserError("recenter='fold' changes the base, so lanes cannot share it; use 'carry'")
    if not by_lane or not all(by_lane):
        raise UserError("no layer to adapt: the factors are empty")
    if len(drops) != len(by_lane) or len(infos) != len(by_lane):
        raise UserError(f"{len(by_lane)} lanes, but {len(drops)} dropout values and {len(infos)} infos")
    for p in drops:
        quantise(p)
    for plans in by_lane:
        for name, plan in plans.items():
            if name not in modules:
                raise UserError(f"no layer {name!r}; {near(name, modules)}")
            plan.check_module(name, modules[name])
    if recenter == "fold" and drops[0] and any(plan.shifts_base for plan in by_lane[0].values()):
        warnings.warn(
            f"dropout={drops[0]} with recenter='fold': under dropout step 0 is no longer the base model",
            stacklevel=4,
        )


def adapted_layer(base: nn.Module, adapters: Mapping[int, LayerAdapter], pack: PackState, name: str) -> AdaptedLayer:
    """Return what stands in a module's place: the frozen module with its adapters, {lane: adapter}."""
    if isinstance(base, ExpertSlice):
        return AdaptedExpert(base, adapters, pack, name)
    return (AdaptedLinear if is_linear(base) else AdaptedModule)(base, adapters, pack, name)


def placed(plan: LayerPlan, base: nn.Module) -> LayerPlan:
    """Put a plan's tensors where the module's are, in the dtype that trains."""
    parameter = next(base.parameters(), None)
    if parameter is None:
        return plan
    return plan.to(torch.promote_types(torch.float32, parameter.dtype), parameter.device)


class _Shared:
    """Keeps one copy of each frozen tensor that lanes of a layer have in common."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Tensor]] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        for other in self.kept.setdefault(name, []):
            if other.shape == tensor.shape and (other.data_ptr() == tensor.data_ptr() or torch.equal(other, tensor)):
                return other
        self.kept[name].append(tensor.contiguous())
        return self.kept[name][-1]


@torch.no_grad()
def _fold(installation: Installation, adapters: Adapters) -> None:
    shifted = {name: adapter for name, adapter in adapters.layer_adapters().items() if adapter.shifts_base}
    try:
        installation.refuse_tied(shifted, "fold into")
        with own_precision(installation.model):
            for name, adapter in shifted.items():
                adapters.linear(name).fold(adapter)
    except UserError:
        installation.remove(0)  # the layers that were folded get their weight back
        raise
