"""Adapters on disk: one safetensors file with the model's own key names and one JSON header, no pickle.

    adapter.json          what the adapters are, the tensors' names, dtypes and shapes, and two SHA-256:
                          "sha256" of the tensors' file, "digest" of the header's own content
    adapter.safetensors   the tensors

Format 1, written by older versions, has no digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lorax.adapters.linear import AdaptedLinear
from lorax.records.folder import staged

if TYPE_CHECKING:
    from lorax.adapters.handle import Adapters
    from lorax.adapters.layer_adapter import LayerAdapter

FORMAT = 2
HEADER = "adapter.json"
TENSORS = "adapter.safetensors"
_SAMPLES = 16


def digest(tensor: Tensor) -> str:
    """Return 16 hexadecimal digits of a tensor's dtype, shape and bytes."""
    data = tensor.detach().cpu().contiguous()
    head = hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode())
    head.update(data.view(-1).view(torch.uint8).numpy().data)
    return head.hexdigest()[:16]


def digest_header(header: dict[str, Any]) -> str:
    """Return the SHA-256 of a header's content, in one spelling, without its own digest."""
    content = {key: value for key, value in header.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def signature(tensor: Tensor) -> list[Any]:
    """Return dtype and shape as plain data."""
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def save(
    adapters: Adapters,
    path: str | Path,
    quiet: bool = False,
    tensors: str = TENSORS,
    beside: dict[str, Tensor] | None = None,
    cut: tuple[dict[str, Any], dict[str, LayerAdapter]] | None = None,
) -> int:
    """Write adapters to the folder `path`; see `Adapters.save`.

    Args:
        adapters: what to save.
        path: the folder.
        quiet: do not print the size.
        tensors: file name of the tensors.
        beside: tensors that stand in the file for other readers; `lorax.load` leaves them out.
        cut: info and layers' adapters to write in place of the adapters' own.
    """
    info, layers = (adapters.info, adapters.layer_adapters()) if cut is None else cut
    state, heads = tensors_of(adapters, layers)
    header = {
        "kind": "adapter",
        "info": info,
        "recenter": adapters.recenter,
        "dropout": adapters.dropout,
        "heads": heads,
        "layers": {name: _describe(adapters, name, adapter) for name, adapter in layers.items()},
    }
    return write(path, header, state, tensors, quiet, beside)


def write(
    path: str | Path,
    header: dict[str, Any],
    state: dict[str, Tensor],
    tensors: str,
    quiet: bool,
    beside: dict[str, Tensor] | None = None,
) -> int:
    """Write header and tensors so that a reader sees them whole; return their bytes.

    Args:
        path: the folder, made if missing.
        header: plain data, for `adapter.json`; format, index and digests are added here.
        state: the tensors by key.
        tensors: file name of the tensors.
        quiet: do not print the size.
        beside: further tensors in the file, which are no part of what is saved.

    Raises:
        UserError: the folder cannot be written; older files in it are as they were.
    """
    folder = Path(path)
    with staged(folder, last=[tensors, HEADER]) as temporary:
        file = temporary / tensors
        everything = {key: value.contiguous() for key, value in {**state, **(beside or {})}.items()}
        save_file(everything, file, metadata={"format": "pt"})
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        index = {key: signature(value) for key, value in state.items()}
        header = {"format": FORMAT, **header, "tensors": tensors, "sha256": sha256, "index": index}
        header = json.loads(json.dumps(header))  # as a reader will see it
        header["digest"] = digest_header(header)
        (temporary / HEADER).write_text(json.dumps(header, indent=1) + "\n")
    size = (folder / tensors).stat().st_size + (folder / HEADER).stat().st_size
    if not quiet:
        count = len(header.get("layers") or state)
        print(f"saved {header['kind']}: {count} layers, {size / 1e6:.2f} MB, {folder}")
    return size


def tensors_of(
    adapters: Adapters, layers: Mapping[str, LayerAdapter] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Return what a checkpoint holds, under the model's own key names, and which of it are heads.

    Args:
        adapters: with the heads.
        layers: {layer name: adapter}; None: their own.
    """
    state = {
        f"{name}.lanes.0.{key}": tensor.detach()
        for name, adapter in (adapters.layer_adapters() if layers is None else layers).items()
        for key, tensor in adapter.state_dict(keep_vars=True).items()
    }
    heads = {name: parameter.detach() for name, parameter in trained_beside(adapters).items()}
    return {**state, **heads}, sorted(heads)


def trained_beside(adapters: Adapters) -> dict[str, Tensor]:
    """Return what trains beside the adapters, by the model's first name of it: heads, embeddings, biases, norms."""
    return {
        name: parameter
        for name, parameter in adapters.model.named_parameters()
        if parameter.requires_grad and ".lanes." not in name
    }


def _describe(adapters: Adapters, name: str, adapter: LayerAdapter) -> dict[str, Any]:
    layer, described = adapters.layer(name), adapter.describe()
    if isinstance(layer, AdaptedLinear):
        described |= layer.remember("fingerprint", layer.start(), fingerprint)
    else:
        described["module"] = digest_module(name, layer, trained_beside(adapters))
    return described


def digest_module(place: str, module: nn.Module, without: Container[str]) -> str:
    """Return 16 hexadecimal digits of a module's parameters, adapters left out.

    Args:
        place: the module's name in the model.
        module: plain or adapted.
        without: names in the model of parameters that are left out too: they were trained.
    """
    found = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if "lanes" not in name.split(".") and f"{place}.{name}" not in without:
            found.update(f"{name} {digest(parameter)}".encode())
    return found.hexdigest()[:16]


def fingerprint(weight: Tensor) -> dict[str, Any]:
    """Return what tells a base weight from another: digest, shape, dtype and a few of its numbers."""
    flat = weight.reshape(-1)
    step = max(1, flat.numel() // _SAMPLES)
    sample = [float(value) for value in flat[::step][:_SAMPLES]]
    kind = str(weight.dtype).removeprefix("torch.")
    return {"digest": digest(weight), "shape": list(weight.shape), "dtype": kind, "sample": sample}
