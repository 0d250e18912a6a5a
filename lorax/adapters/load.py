"""Put saved adapters, or a wholly trained model, on a base."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters import baselines
from lorax.adapters.experts.find import layers_of
from lorax.adapters.face import LayerPlan
from lorax.adapters.files.format import digest_module, fingerprint
from lorax.adapters.files.plans import restore_plan
from lorax.adapters.files.reading import check_layer, read_header, read_tensors
from lorax.adapters.handle import Adapters
from lorax.adapters.install import install
from lorax.adapters.kinds import effective, is_linear
from lorax.adapters.selection.coverage import coverage_of
from lorax.adapters.selection.wrappers import refuse_wrapped
from lorax.errors import UserError, near


@dataclass(frozen=True)
class Saved:
    """A saved adapter, as it fits a model; or what else was saved."""

    path: str | Path
    header: dict[str, Any]
    tensors: dict[str, Tensor]
    """The tensors of a wholly trained model, by name; of an adapter as `Adapters.load_state_dict` takes them."""
    plans: dict[str, LayerPlan]
    """{layer: its plan}; empty where no adapter was saved."""
    heads: list[tuple[nn.Parameter, Tensor]]
    """Parameters of the model that were trained beside the adapter, and their values."""


def load(
    model: nn.Module,
    path: str | Path,
    check: str = "error",
    accept: Callable[[dict[str, Any]], None] | None = None,
) -> Any:
    """Put a saved adapter (or wholly trained model) on `model`, without repeating any decomposition.

    Args:
        model: the base it was trained on.
        path: folder written by `save`, or a Trainer checkpoint.
        check: "error" refuses a base whose adapted weights differ from those it was trained on;
            "warn" only warns, for another dtype of the same weights.
        accept: is given what `save` wrote of how the adapters came to be; it may raise, before anything is changed.

    Returns:
        The adapters, or the handle of full fine-tuning or of a frozen base, whichever was saved.

    Raises:
        UserError: another base (names both digests), a missing layer, a damaged or edited file; the model is
            then as it was.
    """
    saved = read_saved(model, path, check, accept)
    header = saved.header
    if header["kind"] != "adapter":
        return baselines.restore(model, header, saved.tensors)
    whole = {name.rpartition(".")[0] for name in header["heads"]}
    coverage = coverage_of(model, header["layers"], {}, whole, [])
    with one_line(f"{path}: the adapters cannot be built"):
        adapters = install(
            model, saved.plans, recenter=header["recenter"], dropout=header["dropout"], info=header["info"]
        )
    fill(adapters, saved)
    adapters.coverage = coverage
    adapters.train_whole(header["heads"])
    for parameter, value in saved.heads:
        parameter.data.copy_(value)
    return adapters


def read_saved(
    model: nn.Module, path: str | Path, check: str = "error", accept: Callable[[dict[str, Any]], None] | None = None
) -> Saved:
    """Read a saved adapter and fit it to a model, which is not changed; arguments and errors as `load`."""
    if check not in ("error", "warn"):
        raise UserError(f"check={check!r}; {near(check, ['error', 'warn'])}")
    header = read_header(path)
    state = read_tensors(path, header)
    if accept is not None:
        accept(header["info"])
    refuse_wrapped(model)
    modules, differing = layers_of(model), []
    for name, layer in header["layers"].items():
        check_layer(path, name, layer)
        if name not in modules:
            raise UserError(f"{path}: adapts {name}, which this model lacks; {near(name, modules)}")
        with one_line(f"{path}: what is stored of the base weight {name} cannot be read"):
            if line := other_base(str(path), name, layer, modules[name], header["heads"]):
                differing.append(line)
    if differing and check == "error":
        raise UserError(differing[0] + _more(differing) + "; check='warn' loads it all the same")
    if differing:
        warnings.warn(differing[0] + _more(differing), stacklevel=3)
    if header["kind"] != "adapter":
        return Saved(path, header, state, {}, [])
    heads = _heads(model, header["heads"], state, str(path))
    plans, tensors = _plans(header["layers"], state, modules, str(path))
    return Saved(path, header, tensors, plans, heads)


def fill(adapters: Adapters, saved: Saved) -> None:
    """Put saved values into adapters that were built from the saved plans, in the model's own mode.

    Raises:
        UserError: they have other tensors; the adapters are then taken off.
    """
    try:
        adapters.load_state_dict(saved.tensors)
    except UserError as error:
        adapters.detach()
        raise UserError(f"{saved.path}: {error}") from None
    adapters.train(adapters.model.training)  # dropout is off on a model in eval mode


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Say in one line which part of a description does not fit the rest."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{what}: {' '.join(said.split())[:150]}") from None


def _plans(
    layers: dict[str, Any], state: dict[str, Tensor], modules: dict[str, nn.Module], path: str
) -> tuple[dict[str, LayerPlan], dict[str, Tensor]]:
    """Return the plan of every layer, and the tensors as `Adapters.load_state_dict` takes them."""
    plans: dict[str, LayerPlan] = {}
    saved: dict[str, Tensor] = {}
    by_layer: dict[str, dict[str, Tensor]] = {name: {} for name in layers}
    for key, value in state.items():
        name, _, tensor = key.partition(".lanes.0.")
        if not tensor or name not in by_layer:
            raise UserError(f"{path}: the tensor {key} belongs to no adapted layer and to no head")
        by_layer[name][tensor] = value
    for name, layer in layers.items():
        tensors = by_layer[name]
        with one_line(f"{path}: the adapter of {name} cannot be built"):
            plans[name] = restore_plan(layer, tensors)
            plans[name].check_module(name, modules[name])
        saved |= {f"{name}.{key}": value for key, value in tensors.items()}
    return plans, saved


def _heads(
    model: nn.Module, heads: list[Any], state: dict[str, Tensor], path: str
) -> list[tuple[nn.Parameter, Tensor]]:
    """Take the heads out of the tensors; return where each belongs."""
    named = dict(model.named_parameters())
    places = []
    for name in heads:
        value = state.pop(name, None) if isinstance(name, str) else None
        if value is None:
            raise UserError(f"{path}: names a head {str(name)[:60]!r} whose tensor is missing")
        if name not in named or named[name].shape != value.shape:
            shape = tuple(value.shape)
            raise UserError(f"{path}: holds {name} {shape}, which this model lacks; {near(name, named)}")
        places.append((named[name], value))
    return places


def other_base(path: str, name: str, saved: dict[str, Any], module: nn.Module, heads: list[Any]) -> str | None:
    """Say how a base weight differs from the one that was trained on, or None if it does not."""
    if "digest" not in saved:  # at a module, which has no weight of its own
        present = digest_module(name, module, heads)
        if saved.get("module", present) == present:
            return None
        return (
            f"{path}: trained on {name} with digest {saved['module']}, this model has {present}: other weights or dtype"
        )
    if not is_linear(module):
        raise UserError(f"{path}: adapts {name}, which is {type(module).__name__} here, not a linear layer")
    here = effective(module)
    if list(here.shape) != saved["shape"]:
        raise UserError(f"{path}: {name} has shape {tuple(saved['shape'])}, here it is {tuple(here.shape)}")
    now = fingerprint(here)
    if now["digest"] == saved["digest"]:
        return None
    close = torch.allclose(torch.tensor(now["sample"]), torch.tensor(saved["sample"]), rtol=2**-7, atol=1e-6)
    why = "the same weights in another dtype" if close and now["dtype"] != saved["dtype"] else "other weights"
    return (
        f"{path}: trained on {name} with digest {saved['digest']} ({saved['dtype']}), "
        f"this model has {now['digest']} ({now['dtype']}): {why}"
    )


def _more(lines: list[str]) -> str:
    return f" (and {len(lines) - 1} more layers)" if len(lines) > 1 else ""
