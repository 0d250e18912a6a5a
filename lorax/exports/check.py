"""Every export to PEFT is computed once: stock PEFT loads the folder, and what it holds is compared with ours.

PEFT loads onto a copy of the base whose weights take no memory (one number each, repeated): the change that it
would make of every layer, its list of layers, and every other trained parameter at every place where it stands
are compared. A small model also runs once on both sides.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorax.errors import UserError
from lorax.exports.example import example_inputs, relative_error, run, runs
from lorax.exports.layout import places_of

if TYPE_CHECKING:
    from lorax.exports.adapted import AdaptedModel

_WEIGHTS, _OUTPUT = 1e-4, 2e-4
"""Bounds of the relative error: ||PEFT's change - ours||_F over ||ours||_F, and of the output."""
_PATCHED = ("save_pretrained", "load_state_dict", "push_to_hub")


@torch.no_grad()
def check_export(
    adapted: AdaptedModel, folder: Path, changes: Mapping[str, Tensor | None], inputs: Mapping[str, Any] | None
) -> None:
    """Load the folder with stock PEFT and compare.

    Args:
        adapted: what was exported.
        folder: as written.
        changes: {layer: the change (m, n) that the file is meant to hold}; None: what the adapter makes of it.
        inputs: the model's keyword arguments for one more comparison, of outputs; None: made from the model's
            own configuration where it is small.

    Raises:
        UserError: PEFT cannot load it, or computes something else; names the layer and the error.
    """
    compares = inputs is not None or (runs(adapted.model) and all(change is None for change in changes.values()))
    with adapted.as_base():
        places = places_of(adapted.model)
        base = copy_of_base(adapted, hollow=not compares)
    with torch.random.fork_rng(devices=[]):  # PEFT draws numbers
        loaded = _load(base, folder)
    _check_layers(adapted, loaded, changes)
    _check_beside(adapted, loaded, places)
    if compares:
        _check_output(adapted, loaded, inputs)


def copy_of_base(adapted: AdaptedModel, hollow: bool) -> nn.Module:
    """Return a copy of the base model, which is in place now; a hollow one has zeros that take no memory."""
    model = adapted.model
    memo: dict[int, Any] = {id(model.__dict__[name]): None for name in _PATCHED if name in model.__dict__}
    beside = {id(parameter) for parameter in adapted.beside.values()}
    for parameter in model.parameters():
        if hollow or id(parameter) in beside:  # what was trained must come from the folder
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            memo[id(parameter)] = nn.Parameter(zeros if hollow else zeros.clone(), requires_grad=False)
    try:
        base = copy.deepcopy(model, memo)
    except Exception as error:  # a module that cannot be copied
        raise UserError(
            f"cannot verify the export (verify=False omits it): the model cannot be copied: {_text(error)}"
        ) from None
    for name in _PATCHED:
        base.__dict__.pop(name, None)
    return base


def _load(base: nn.Module, folder: Path) -> nn.Module:
    import peft

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            loaded = peft.PeftModel.from_pretrained(base, str(folder)).eval()
        except Exception as error:  # whatever PEFT raises, the folder is of no use
            raise UserError(f"cannot export: stock PEFT cannot load the folder: {_text(error)}") from None
    missing = [str(line.message) for line in said if "missing adapter keys" in str(line.message)]
    if missing:
        raise UserError(f"cannot export: stock PEFT does not find its tensors: {_text(missing[0])}")
    return loaded


def _inner(loaded: nn.Module) -> nn.Module:
    """Return the base model with PEFT's layers in it."""
    return loaded.get_submodule("base_model.model")


def _check_layers(adapted: AdaptedModel, loaded: nn.Module, changes: Mapping[str, Tensor | None]) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = _inner(loaded)
    places = {place: name for place, name in adapted.places.items() if name in adapted.layers}
    wholes = {place: place.rpartition(".")[0] if name in adapted.experts else place for place, name in places.items()}
    present: dict[str, Any] = {}
    named = inner.named_modules(remove_duplicate=False)
    wrappers = {place: module for place, module in named if isinstance(module, BaseTunerLayer)}
    for place, module in wrappers.items():
        if place.rpartition(".")[0] not in wrappers:  # not one inside another
            present |= _adapted(_without(place, wrappers), module, set(wholes.values()))
    for place, name in places.items():
        if wholes[place] not in present:
            shared = f"; it is the same module as {name}" if place != name else ""
            raise UserError(f"cannot export {place}: stock PEFT does not adapt it{shared}")
    if odd := sorted(set(present) - set(wholes.values())):
        raise UserError(f"cannot export: stock PEFT would adapt {odd[0]} too, and {len(odd) - 1} more")
    parts: dict[str, list[str]] = {}
    for name in adapted.layers:
        parts.setdefault(wholes[name], []).append(name)
    for whole, names in parts.items():
        _check_change(adapted, present[whole].get_delta_weight("default").detach(), names, changes)


def _without(place: str, wrappers: Container[str]) -> str:
    """Return the name that a place has in the base model, whose modules PEFT has wrapped."""
    parts = place.split(".")
    return ".".join(part for i, part in enumerate(parts) if part != "base_layer" or ".".join(parts[:i]) not in wrappers)


def _adapted(place: str, module: Any, wholes: Container[str]) -> dict[str, Any]:
    """Return PEFT's layer by its place, or by the parameter of several experts that it and those in it adapt."""
    from peft.tuners.lora.layer import ParamWrapper

    found = {}
    while isinstance(module, ParamWrapper):
        parameter = f"{place}.{module.parameter_name}"
        found[place if place in wholes else parameter] = module
        module = module.base_layer
    return found or {place: module}


def _check_change(adapted: AdaptedModel, delta: Tensor, names: list[str], changes: Mapping[str, Tensor | None]) -> None:
    """Compare PEFT's change of a weight, or of all experts' weights, with those of our layers in it."""
    for name in names:
        layer, wanted = adapted.layers[name], changes[name]
        change = layer.matrix(delta)
        ours = layer.delta() if wanted is None else wanted
        ours = ours.to(change.device, torch.promote_types(change.dtype, torch.float32))
        error = float((change - ours).norm()) if change.shape == ours.shape else float("inf")
        size, kind = float(ours.norm()), torch.finfo(change.dtype)
        # of a parameter PEFT gives its change in the parameter's own precision
        if not error <= max(_WEIGHTS, kind.eps / 2) * size + kind.tiny * kind.eps * ours.numel() ** 0.5 + 1e-12:
            said = error / max(size, 1e-12)
            raise UserError(f"cannot export {name}: stock PEFT makes another change of it, relative error {said:.2g}")
    if experts := [adapted.experts[name] for name in names if name in adapted.experts]:
        left = sorted(set(range(experts[0].count)) - {expert.index for expert in experts})
        if left and bool(delta[left].any()):
            raise UserError(f"cannot export {experts[0].parameter}: stock PEFT would adapt other experts too")


def _check_beside(adapted: AdaptedModel, loaded: nn.Module, places: Mapping[int, list[str]]) -> None:
    """Compare every parameter that trains beside the adapters, at every place where it stands."""
    inner = _inner(loaded)
    for parameter in adapted.beside.values():
        for place in places[id(parameter)]:
            got = _parameter(inner, place)
            if got is None or got.shape != parameter.shape or not torch.equal(got.cpu(), parameter.detach().cpu()):
                raise UserError(f"cannot export {place}: stock PEFT would not use its trained values")


def _parameter(inner: nn.Module, place: str) -> Tensor | None:
    """Return the parameter that PEFT's model uses at a place of the base model."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    module: nn.Module = inner
    *path, leaf = place.split(".")
    for part in path:
        child = module._modules.get(part)
        if child is None:
            return None
        if isinstance(child, ModulesToSaveWrapper):
            child = child.modules_to_save["default"]
        module = child.get_base_layer() if isinstance(child, BaseTunerLayer) else child
    found = getattr(module, leaf, None)
    return found.detach() if isinstance(found, Tensor) else None


def _check_output(adapted: AdaptedModel, loaded: nn.Module, inputs: Mapping[str, Any] | None) -> None:
    model = adapted.model
    batch = inputs if inputs is not None else example_inputs(model)
    if batch is None:
        return
    try:
        with adapted.as_adapted():
            ours = run(model, batch)
    except Exception as failure:  # the inputs are a guess, unless they were given
        if inputs is not None:
            raise UserError(f"cannot verify the export: the model fails on verify={_text(failure)}") from None
        return
    try:
        theirs = run(loaded.to(next(model.parameters()).device), batch)
    except Exception as failure:
        raise UserError(f"cannot export: in stock PEFT the model fails: {_text(failure)}") from None
    if ours is None or theirs is None:
        return
    error = relative_error(theirs, ours)
    if error > _OUTPUT:
        raise UserError(f"cannot export: stock PEFT computes another output, relative error {error:.2g}")


def _text(error: object) -> str:
    return " ".join(str(error).split())[:160]
