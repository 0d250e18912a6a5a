"""Put saved adapters, or a wholly trained model, on a base."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters import baselines
from lorax.adapters.face import LayerPlan
from lorax.adapters.files.format import fingerprint, read_header, read_tensors
from lorax.adapters.files.plans import restore_plan
from lorax.adapters.install import install
from lorax.adapters.kinds import effective, is_linear
from lorax.adapters.selection.coverage import coverage_of
from lorax.adapters.selection.wrappers import refuse_wrapped
from lorax.errors import UserError, near


def load(model: nn.Module, path: str | Path, check: str = "error") -> Any:
    """Put a saved adapter (or wholly trained model) on `model`, without repeating any decomposition.

    Args:
        model: the base it was trained on.
        path: folder written by `save`, or a Trainer checkpoint.
        check: "error" refuses a base whose adapted weights differ from those it was trained on;
            "warn" only warns, for another dtype of the same weights.

    Returns:
        The adapters, or the handle of full fine-tuning or of a frozen base, whichever was saved.

    Raises:
        UserError: another base (names both digests), a missing layer, a damaged file.
    """
    if check not in ("error", "warn"):
        raise UserError(f"check={check!r}; {near(check, ['error', 'warn'])}")
    header = read_header(path)
    state = read_tensors(path, header)
    modules, differing = dict(model.named_modules()), []
    refuse_wrapped(model)
    for name, layer in header["layers"].items():
        if name not in modules:
            raise UserError(f"{path}: adapts {name}, which this model lacks; {near(name, modules)}")
        if line := _other_base(str(path), name, layer, modules[name]):
            differing.append(line)
    if differing and check == "error":
        raise UserError(differing[0] + _more(differing) + "; check='warn' loads it all the same")
    if differing:
        warnings.warn(differing[0] + _more(differing), stacklevel=2)
    if header["kind"] != "adapter":
        return baselines.restore(model, header, state)
    heads = _heads(model, {name: state.pop(name) for name in header["heads"]}, str(path))
    plans: dict[str, LayerPlan] = {}
    saved: dict[str, Tensor] = {}
    for name, layer in header["layers"].items():
        prefix = f"{name}.lanes.0."
        tensors = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        plans[name] = restore_plan(layer, tensors)
        saved |= {f"{name}.{key}": value for key, value in tensors.items()}
    whole = {name.rpartition(".")[0] for name in header["heads"]}
    coverage = coverage_of(model, header["layers"], {}, whole, [])
    adapters = install(model, plans, recenter=header["recenter"], dropout=header["dropout"], info=header["info"])
    adapters.load_state_dict(saved)
    adapters.coverage = coverage
    adapters.train_whole(header["heads"])
    for parameter, value in heads:
        parameter.data.copy_(value)
    return adapters


def _heads(model: nn.Module, heads: dict[str, Tensor], path: str) -> list[tuple[nn.Parameter, Tensor]]:
    named = dict(model.named_parameters())
    for name, value in heads.items():
        if name not in named or named[name].shape != value.shape:
            shape = tuple(value.shape)
            raise UserError(f"{path}: holds {name} {shape}, which this model lacks; {near(name, named)}")
    return [(named[name], value) for name, value in heads.items()]


def _other_base(path: str, name: str, saved: dict[str, Any], module: nn.Module) -> str | None:
    """Say how a base weight differs from the one that was trained on, or None if it does not."""
    if "digest" not in saved:
        return None  # at a module, which has no weight of its own
    if not is_linear(module):
        raise UserError(f"{path}: adapts {name}, which is {type(module).__name__} here, not a linear layer")
    here = effective(module)
    if list(here.shape) != saved["shape"]:
        raise UserError(f"{path}: {name} has shape {tuple(saved['shape'])}, here it is {tuple(here.shape)}")
    present = fingerprint(here)
    if present["digest"] == saved["digest"]:
        return None
    close = torch.allclose(torch.tensor(present["sample"]), torch.tensor(saved["sample"]), rtol=2**-7, atol=1e-6)
    why = "the same weights in another dtype" if close and present["dtype"] != saved["dtype"] else "other weights"
    return (
        f"{path}: trained on {name} with digest {saved['digest']} ({saved['dtype']}), "
        f"this model has {present['digest']} ({present['dtype']}): {why}"
    )


def _more(lines: list[str]) -> str:
    return f" (and {len(lines) - 1} more layers)" if len(lines) > 1 else ""
