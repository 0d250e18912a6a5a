"""Adapters on disk: one safetensors file with the model's own key names and one JSON header, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorax.adapters.linear import AdaptedLinear
from lorax.errors import UserError
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
    head.update(data.view(-1).view(torch.uint8).numpy().data)
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
        "layers": {name: _describe(adapters, name) for name in adapters.names()},
    }
    return write(path, header, state, tensors, quiet)


def write(path: str | Path, header: dict[str, Any], state: dict[str, Tensor], tensors: str, quiet: bool) -> int:
    """Write header and tensors so that a reader sees them whole; return their bytes.

    Args:
        path: the folder, made if missing.
        header: plain data, for `adapter.json`.
        state: the tensors by key.
        tensors: file name of the tensors.
        quiet: do not print the size.

    Raises:
        UserError: the folder cannot be written.
    """
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
        for name, adapter in adapters.layer_adapters().items()
        for key, tensor in adapter.state_dict(keep_vars=True).items()
    }
    heads = {
        name: parameter.detach()
        for name, parameter in adapters.model.named_parameters()
        if parameter.requires_grad and ".lanes." not in name
    }
    return {**state, **heads}, sorted(heads)


def _describe(adapters: Adapters, name: str) -> dict[str, Any]:
    layer = adapters.layer(name)
    described = adapters.layer_adapters()[name].describe()
    if isinstance(layer, AdaptedLinear):
        described |= layer.remember("fingerprint", layer.start(), fingerprint)
    return described


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
