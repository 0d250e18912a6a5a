"""install: put factors on a model as trainable layers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters.dropout import quantise
from lorax.adapters.factors import Factors
from lorax.adapters.files.trainer import patch_checkpoints
from lorax.adapters.handle import Adapters
from lorax.adapters.installation import Site
from lorax.adapters.layer_adapter import Lane
from lorax.adapters.linear import AdaptedLinear, effective, is_linear
from lorax.adapters.pack_state import Pack
from lorax.adapters.targets import find_targets
from lorax.errors import UserError, near

__all__ = ["Adapters", "find_targets", "install"]
RECENTER = ("carry", "fold")


def install(
    model: nn.Module,
    factors: dict[str, Factors] | Sequence[dict[str, Factors]],
    recenter: str = "carry",
    dropout: float | Sequence[float] = 0.0,
    info: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
) -> Adapters | list[Adapters]:
    """Replace the named linear layers by adapted ones and freeze everything else.

    Args:
        model: changed in place; `Adapters.detach` undoes it.
        factors: {layer name: factors}; or one such mapping for each lane, for K lanes on one base.
        recenter: "carry" leaves W0 untouched and adds telescoped differences; "fold" writes
            W_fz = W0 - eta B0 M0 A0 into the weight of recentred factors (one lane only; W0 is kept
            in memory for `disabled`, `delta` and `detach`).
        dropout: probability on the adapters' input, one for all or one a lane.
        info: plain data that `save` writes beside the tensors, one or one a lane.

    Returns:
        The adapters; a list of them, lane by lane, if a list was given.

    Raises:
        UserError: an unknown layer, a shape that does not fit, fold with several lanes or on a tied weight.
    """
    several = not isinstance(factors, dict)
    sets = list(factors) if several else [factors]
    drops = list(dropout) if isinstance(dropout, Sequence) else [dropout] * len(sets)
    infos = list(info) if isinstance(info, Sequence) else [info or {}] * len(sets)
    _check(model, sets, recenter, several, drops, infos)
    site = Site(model, Pack(len(sets)))
    layers = {}
    for name in sorted(set().union(*sets)):
        base = model.get_submodule(name)
        lanes: dict[int, Lane] = {}
        pool: dict[str, list[Tensor]] = {}
        for number, given in enumerate(sets):
            if name in given:
                lanes[number] = _lane(given[name], base, recenter, drops[number], pool)
        layers[name] = AdaptedLinear(base, lanes, site.pack, name)
    site.freeze()
    site.put(layers)
    handles = [Adapters(site, k, recenter, drops[k], dict(infos[k])) for k in range(len(sets))]
    if recenter == "fold":
        _fold(site, handles[0])
    patch_checkpoints(site, handles)
    return handles if several else handles[0]


def _check(
    model: nn.Module, sets: list[dict[str, Factors]], recenter: str, several: bool, drops: list, infos: list
) -> None:
    if recenter not in RECENTER:
        raise UserError(f"recenter={recenter!r}; {near(recenter, RECENTER)}")
    if recenter == "fold" and several:
        raise UserError("recenter='fold' changes the base, so lanes cannot share it; use 'carry'")
    if not sets or not all(sets):
        raise UserError("no layer to adapt: the factors are empty")
    if len(drops) != len(sets) or len(infos) != len(sets):
        raise UserError(f"{len(sets)} lanes, but {len(drops)} dropout values and {len(infos)} infos")
    for p in drops:
        quantise(p)
    modules = dict(model.named_modules())
    if any(isinstance(module, AdaptedLinear) for module in modules.values()):
        raise UserError("this model has adapters already; detach() them first")
    for given in sets:
        for name, one in given.items():
            if name not in modules:
                raise UserError(f"no layer {name!r}; {near(name, modules)}")
            if not is_linear(modules[name]):
                raise UserError(f"{name} is {type(modules[name]).__name__}, not a linear layer")
            one.check(name, *effective(modules[name]).shape)
    if recenter == "fold" and drops[0] and any(one.shifts_base for one in sets[0].values()):
        warnings.warn(
            f"dropout={drops[0]} with recenter='fold': under dropout step 0 is no longer the base model",
            stacklevel=4,
        )


def _lane(factors: Factors, base: nn.Module, recenter: str, dropout: float, pool: dict[str, list[Tensor]]) -> Lane:
    dtype = torch.float64 if base.weight.dtype == torch.float64 else torch.float32

    def share(name: str, tensor: Tensor) -> Tensor:
        for other in pool.setdefault(name, []):
            if other.shape == tensor.shape and (other.data_ptr() == tensor.data_ptr() or torch.equal(other, tensor)):
                return other
        pool[name].append(tensor.contiguous())
        return pool[name][-1]

    placed = factors.to(dtype, base.weight.device)
    return Lane(placed, fold=recenter == "fold", dropout=dropout, share=share)


@torch.no_grad()
def _fold(site: Site, adapters: Adapters) -> None:
    shifted = {name: lane for name, lane in adapters.lanes().items() if lane.shifts_base}
    try:
        site.refuse_tied(shifted, "fold into")
    except UserError:
        site.remove(0)
        raise
    for name, lane in shifted.items():
        site.layers[name].fold(lane)
