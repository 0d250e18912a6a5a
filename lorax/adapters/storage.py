"""Adapters on disk: one safetensors file with the model's own key names and one JSON header, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lorax.adapters import core
from lorax.adapters.factors import Factors
from lorax.adapters.lane import Lane
from lorax.adapters.layer import AdaptedLinear, effective, is_linear
from lorax.errors import UserError, near
from lorax.records.store import write_atomic

if TYPE_CHECKING:
    from lorax.adapters.handle import Adapters

FORMAT = 1
HEADER = "adapter.json"
TENSORS = "adapter.safetensors"
_SAMPLES = 16


def digest(tensor: Tensor) -> str:
    """Return 16 hexadecimal digits of a tensor's dtype, shape and bytes."""
    data = tensor.detach().cpu().contiguous()
    head = hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode())
    head.update(memoryview(data.view(-1).view(torch.uint8).numpy()))
    return head.hexdigest()[:16]


def save(adapters: Adapters, path: str | Path, quiet: bool = False, tensors: str = TENSORS) -> int:
    """Write adapters to the folder `path`; see `Adapters.save`."""
    state, heads = tensors_of(adapters)
    header = {
        "format": FORMAT,
        "kind": "adapter",
        "info": adapters.info,
        "recenter": adapters.recenter,
        "dropout": adapters.dropout,
        "heads": heads,
        "tensors": tensors,
        "layers": {name: _describe(adapters, name, lane) for name, lane in adapters.lanes().items()},
    }
    return write(path, header, state, tensors, quiet)


def write(path: str | Path, header: dict[str, Any], state: dict[str, Tensor], tensors: str, quiet: bool) -> int:
    """Write header and tensors so that a reader sees them whole; return their bytes."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{tensors}.{os.getpid()}"
        save_file({key: value.contiguous() for key, value in state.items()}, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / tensors)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    write_atomic(folder / HEADER, json.dumps(header, indent=1) + "\n")
    size = (folder / tensors).stat().st_size + (folder / HEADER).stat().st_size
    if not quiet:
        count = len(header.get("layers") or state)
        print(f"saved {header['kind']}: {count} layers, {size / 1e6:.2f} MB, {folder}")
    return size


def tensors_of(adapters: Adapters) -> tuple[dict[str, Tensor], list[str]]:
    """Return what a checkpoint holds, under the model's own key names, and which of it are heads."""
    state = {
        f"{name}.lanes.0.{key}": tensor.detach()
        for name, lane in adapters.lanes().items()
        for key, tensor in lane.state_dict(keep_vars=True).items()
    }
    heads = {
        name: parameter.detach()
        for name, parameter in adapters.model.named_parameters()
        if parameter.requires_grad and ".lanes." not in name
    }
    return {**state, **heads}, sorted(heads)


def _describe(adapters: Adapters, name: str, lane: Lane) -> dict[str, Any]:
    layer = adapters.layer(name)
    return {
        "eta": lane.eta,
        "trainable": sorted(lane.trainable),
        "shared": sorted(lane.shared),
        "shifts_base": lane.shifts_base,
        "core": lane.header,
        "report": lane.report,
        **layer.remember("fingerprint", layer.start(), fingerprint),
    }


def fingerprint(weight: Tensor) -> dict[str, Any]:
    """Return what tells a base weight from another: digest, shape, dtype and a few of its numbers."""
    flat = weight.reshape(-1)
    step = max(1, flat.numel() // _SAMPLES)
    sample = [float(value) for value in flat[::step][:_SAMPLES]]
    kind = str(weight.dtype).removeprefix("torch.")
    return {"digest": digest(weight), "shape": list(weight.shape), "dtype": kind, "sample": sample}


def read_header(path: str | Path) -> dict[str, Any]:
    """Read the JSON header of a saved adapter.

    Raises:
        UserError: no adapter there, or one of a newer format.
    """
    file = Path(path) / HEADER
    try:
        header = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no saved adapter ({HEADER} is missing)") from None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    if header.get("format", FORMAT + 1) > FORMAT:
        raise UserError(f"{file}: format {header.get('format')}, this version reads up to {FORMAT}")
    return header


def read_tensors(path: str | Path, header: dict[str, Any]) -> dict[str, Tensor]:
    """Read the tensors that belong to a header.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = Path(path) / header["tensors"]
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(f"{file}: cannot be read ({error})") from None


def load(model: nn.Module, path: str | Path, check: str = "error") -> Any:
    """Put a saved adapter (or wholly trained model) on `model`, without repeating any decomposition.

    Args:
        model: the base it was trained on.
        path: folder written by `save`, or a Trainer checkpoint.
        check: "error" refuses a base whose adapted weights differ from those it was trained on;
            "warn" only warns, for another dtype of the same weights.

    Returns:
        Adapters, or the object of the arm that was saved.

    Raises:
        UserError: another base (names both digests), a missing layer, a damaged file.
    """
    from lorax.adapters import arms
    from lorax.adapters.install import install

    if check not in ("error", "warn"):
        raise UserError(f"check={check!r}; {near(check, ['error', 'warn'])}")
    header = read_header(path)
    state = read_tensors(path, header)
    modules, differing = dict(model.named_modules()), []
    if any(isinstance(module, AdaptedLinear) for module in modules.values()):
        raise UserError("this model has adapters already; detach() them first")
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
        return arms.restore(model, header, state)
    heads = _heads(model, {name: state.pop(name) for name in header["heads"]}, str(path))
    factors, trained = {}, {}
    for name, layer in header["layers"].items():
        prefix = f"{name}.lanes.0."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        factors[name] = _factors(layer, own)
        trained |= {f"{name}.{key}": value for key, value in own.items()}
    adapters = install(model, factors, recenter=header["recenter"], dropout=header["dropout"], info=header["info"])
    adapters.load_state_dict(trained)
    for parameter, value in heads:
        parameter.requires_grad_(True).data.copy_(value)
    return adapters


def _factors(layer: dict[str, Any], own: dict[str, Tensor]) -> Factors:
    mark = "0" if layer["shifts_base"] else ""
    pattern = {key: own[key] for key in ("rows", "cols") if key in own}
    M = core.restore(layer["core"], {"M": own.get(f"M{mark}"), **pattern})
    return Factors(
        own[f"B{mark}"],
        M,
        own[f"A{mark}"],
        layer["eta"],
        frozenset(layer["trainable"]),
        layer["shifts_base"],
        layer["report"],
        frozenset(layer["shared"]),
    )


def _heads(model: nn.Module, heads: dict[str, Tensor], path: str) -> list[tuple[nn.Parameter, Tensor]]:
    named = dict(model.named_parameters())
    for name, value in heads.items():
        if name not in named or named[name].shape != value.shape:
            shape = tuple(value.shape)
            raise UserError(f"{path}: holds {name} {shape}, which this model lacks; {near(name, named)}")
    return [(named[name], value) for name, value in heads.items()]


def _other_base(path: str, name: str, saved: dict[str, Any], module: nn.Module) -> str | None:
    """Say how a base weight differs from the one that was trained on, or None if it does not."""
    if not is_linear(module):
        raise UserError(f"{path}: adapts {name}, which is {type(module).__name__} here, not a linear layer")
    here = effective(module)
    if list(here.shape) != saved["shape"]:
        raise UserError(f"{path}: {name} has shape {tuple(saved['shape'])}, here it is {tuple(here.shape)}")
    found = fingerprint(here)
    if found["digest"] == saved["digest"]:
        return None
    close = torch.allclose(torch.tensor(found["sample"]), torch.tensor(saved["sample"]), rtol=2**-7, atol=1e-6)
    why = "the same weights in another dtype" if close and found["dtype"] != saved["dtype"] else "other weights"
    return (
        f"{path}: trained on {name} with digest {saved['digest']} ({saved['dtype']}), "
        f"this model has {found['digest']} ({found['dtype']}): {why}"
    )


def _more(lines: list[str]) -> str:
    return f" (and {len(lines) - 1} more layers)" if len(lines) > 1 else ""
