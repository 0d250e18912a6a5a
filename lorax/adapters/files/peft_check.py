"""Every export to PEFT is computed once: stock PEFT loads the folder, and what it holds is compared with ours.

PEFT loads onto a copy of the base whose weights take no memory (one number each, repeated): the change that it
would make of every layer, its list of layers, and every other trained parameter at every place where it stands
are compared. A small model also runs once on both sides.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorax.adapters import weights
from lorax.adapters.files.format import trained_beside
from lorax.adapters.files.inputs import example_inputs, relative_error, run, runs
from lorax.adapters.files.peft_layout import adapted_places, places_of
from lorax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lorax.adapters.handle import Adapters

_WEIGHTS, _OUTPUT = 1e-4, 2e-4
"""Bounds of the relative error: ||PEFT's change - ours||_F over ||ours||_F, and of the output."""
_PATCHED = ("save_pretrained", "load_state_dict", "push_to_hub")


def check_export(
    adapters: Adapters, folder: Path, changes: Mapping[str, Tensor | None], inputs: Mapping[str, Any] | None
) -> None:
    """Load the folder with stock PEFT and compare.

    Args:
        adapters: what was exported.
        folder: as written.
        changes: {layer: the change (m, n) that the file is meant to hold}; None: what the adapter makes of it.
        inputs: the model's keyword arguments for one more comparison, of outputs; None: made from the model's
            own configuration where it is small.

    Raises:
        UserError: PEFT cannot load it, or computes something else; names the layer and the error.
    """
    compares = inputs is not None or (runs(adapters.model) and all(change is None for change in changes.values()))
    with _copy(adapters, hollow=not compares) as base, torch.random.fork_rng(devices=[]):  # PEFT draws numbers
        loaded = _load(base, folder)
    _check_layers(adapters, loaded, changes)
    _check_beside(adapters, loaded)
    if compares:
        _check_output(adapters, loaded, inputs)


@contextmanager
def _copy(adapters: Adapters, hollow: bool) -> Iterator[nn.Module]:
    """Give a copy of the base model without adapters; a hollow one has zeros that take no memory."""
    model = adapters.model
    patches = [model.__dict__[name] for name in _PATCHED if name in model.__dict__]
    with adapters.installation.plain(), _unmerged(adapters):
        memo: dict[int, Any] = {id(patch): None for patch in patches}
        beside = {id(parameter) for parameter in trained_beside(adapters).values()}
        for parameter in model.parameters():
            if hollow or id(parameter) in beside:  # what was trained must come from the folder
                zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                memo[id(parameter)] = nn.Parameter(zeros if hollow else zeros.clone(), requires_grad=False)
        try:
            base = copy.deepcopy(model, memo)
        except Exception as error:  # a module that cannot be copied
            raise UserError(
                f"cannot verify the export: the model cannot be copied ({_text(error)}); verify=False"
            ) from None
    for name in _PATCHED:
        base.__dict__.pop(name, None)
    yield base


@contextmanager
def _unmerged(adapters: Adapters) -> Iterator[None]:
    """Have W0 in every adapted weight; the modules of the base are in the model now."""
    kept = []
    for name in adapters.names():
        layer = adapters.linear(name)
        if layer.changed:
            kept.append((layer.weight, layer.weight.data))
            layer.weight.data = layer.kind.store(layer.start()).to(layer.weight.data)
    try:
        yield
    finally:
        for weight, data in kept:
            weight.data = data


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


def _check_layers(adapters: Adapters, loaded: nn.Module, changes: Mapping[str, Tensor | None]) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = _inner(loaded)
    names = {id(adapters.layer(name)): name for name in adapters.names()}
    places = {place: names[id(layer)] for place, layer in adapted_places(adapters.model).items() if id(layer) in names}
    present: dict[str, Any] = {}
    for place, module in inner.named_modules(remove_duplicate=False):
        if isinstance(module, BaseTunerLayer) and place.rpartition(".")[0] not in present:  # not one inside another
            present[place] = module
    for place, name in places.items():
        if place not in present:
            shared = f"; it is the same module as {name}" if place != name else ""
            raise UserError(f"cannot export {place}: stock PEFT does not adapt it{shared}")
    if odd := sorted(set(present) - set(places)):
        raise UserError(f"cannot export: stock PEFT would adapt {odd[0]} too, and {len(odd) - 1} more")
    for name, adapter in adapters.layer_adapters().items():
        layer, wanted = adapters.linear(name), changes[name]
        change = layer.kind.matrix(present[name].get_delta_weight("default").detach())
        ours = weights.delta(layer, adapter, adapters.recenter == "fold") if wanted is None else wanted
        ours = ours.to(change.device, torch.promote_types(change.dtype, torch.float32))
        error = float((change - ours).norm()) if change.shape == ours.shape else float("inf")
        size = float(ours.norm())
        if not error <= _WEIGHTS * size + 1e-12:
            said = error / max(size, 1e-12)
            raise UserError(f"cannot export {name}: stock PEFT makes another change of it, relative error {said:.2g}")


def _check_beside(adapters: Adapters, loaded: nn.Module) -> None:
    """Compare every parameter that trains beside the adapters, at every place where it stands."""
    inner, places = _inner(loaded), places_of(adapters.model)
    for parameter in trained_beside(adapters).values():
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


def _check_output(adapters: Adapters, loaded: nn.Module, inputs: Mapping[str, Any] | None) -> None:
    model = adapters.model
    batch = inputs if inputs is not None else example_inputs(model)
    if batch is None:
        return
    try:
        with adapters.pack.active([adapters.number]):
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
