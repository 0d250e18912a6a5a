"""Load an adapter beside others on one base, under a name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lorax.adapters.experts.find import layers_of
from lorax.adapters.handle import Adapters
from lorax.adapters.install import install
from lorax.adapters.load import Saved, fill, read_saved
from lorax.adapters.selection.coverage import coverage_of
from lorax.errors import UserError
from lorax.loading.named.collection import NamedAdapters, of_model
from lorax.loading.named.extend import extend
from lorax.loading.peft.config import is_peft_folder
from lorax.loading.peft.load import read as read_peft

Plans = tuple[dict[str, Any], float, dict[str, Any], "Saved | None"]


def load(
    model: nn.Module,
    name: str,
    path: Path,
    check: str = "error",
    accept: Callable[[dict[str, Any]], None] | None = None,
) -> NamedAdapters:
    """Put a saved adapter, lorax's or PEFT's, on a model under a name, beside those that are there.

    Args:
        model: the base, or one that has named adapters.
        name: any text that is not taken.
        path: as `lorax.load`.
        check: as `lorax.load`.
        accept: as `lorax.adapters.load.load`.

    Returns:
        All named adapters of the model; the new one is in use.

    Raises:
        UserError: a name that is taken, or what has no place beside others: weights of the base that it trains, or
            writes into. Model and adapters are then as they were.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"name={name!r}: a text is needed")
    named = of_model(model)
    if named is None:
        plans, dropout, info, saved = _read(model, path, check, accept)
        adapters = install(model, plans, dropout=dropout, info=info)
        coverage = coverage_of(model, plans, {}, [], [])
        named = NamedAdapters(adapters.installation)
    else:
        if name in named:
            raise UserError(f"name={name!r} is taken; delete({name!r}) first, or choose another")
        if merged := next((one for one in named if named[one].merged), None):
            raise UserError(f"adapter {merged!r} is merged into the weights; unmerge() it before another is loaded")
        with named.installation.plain():
            plans, dropout, info, saved = _read(model, path, check, accept)
            modules = layers_of(model)
            coverage = coverage_of(model, plans, {}, [], [])
        adapters = extend(named.installation, modules, plans, dropout, info)
    _finish(adapters, saved, model)
    adapters.coverage = coverage
    named.add(name, adapters)
    return named


def _read(model: nn.Module, path: Path, check: str, accept: Callable[[dict[str, Any]], None] | None) -> Plans:
    """Return plans, dropout, info and values of a folder."""
    if is_peft_folder(path):
        found = read_peft(model, path)
        _refuse_whole(path, list(found.whole))
        return dict(found.plans), found.config.dropout, found.info(), None
    saved = read_saved(model, path, check, accept)
    header = saved.header
    if header["kind"] != "adapter":
        raise UserError(f"{path}: holds a model trained as {header['kind']}, no adapter: it cannot stand beside others")
    if header["recenter"] == "fold":
        raise UserError(f"{path}: saved under recenter=fold, which writes into the base that adapters share")
    _refuse_whole(path, header["heads"])
    return saved.plans, header["dropout"], header["info"], saved


def _refuse_whole(path: Path, heads: list[str]) -> None:
    if heads:
        raise UserError(
            f"{path}: holds {heads[0]}, a weight of the base that it trained; adapters that share a base cannot each "
            "have their own: load it without a name"
        )


def _finish(adapters: Adapters, saved: Saved | None, model: nn.Module) -> None:
    if saved is not None:
        fill(adapters, saved)
    adapters.train(model.training)
