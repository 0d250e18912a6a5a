"""To a merged checkpoint: a plain model with W' in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorax.errors import UserError
from lorax.exports.example import example_inputs, relative_error, run, runs
from lorax.exports.tokenizer import copy_tokenizer
from lorax.records.folder import staged

VERIFY_UP_TO = 500_000_000
"""A checkpoint of a model with more parameters is verified on request only: it is read back into memory."""
_OUTPUT = 2e-4
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


def output_of(model: nn.Module) -> Tensor | None:
    """Return the output of a small model on a batch of its own making, or None where it cannot be told."""
    inputs = example_inputs(model) if runs(model) else None
    if inputs is None:
        return None
    try:
        return run(model, inputs)
    except Exception:  # the inputs are a guess
        return None


def refuse_other_output(merged: nn.Module, ours: Tensor) -> None:
    """Compare a merged model's output with that of the adapted one.

    Raises:
        UserError: they differ.
    """
    theirs = output_of(merged)
    error = 0.0 if theirs is None else relative_error(theirs, ours)
    if error > _OUTPUT:
        raise UserError(f"cannot export: the merged model computes another output, relative error {error:.2g}")


def write_model(model: nn.Module, path: str | Path, verify: bool | None = None, tokenizer: Any = None) -> None:
    """Write a plain model as it is.

    Args:
        model: what to write; transformers' own `save_pretrained` does it where the model has it.
        path: the folder, made if missing; weights of an older checkpoint there are replaced.
        verify: read it back and compare every tensor. None: up to 5e8 parameters.
        tokenizer: what has `save_pretrained`, to lie in the same folder. None: the files of the folder that the model
            was loaded from, if there are any.

    Raises:
        UserError: the folder cannot be written, holds PEFT's adapter, or reads back as something else.
    """
    refuse_peft(path)
    size = sum(parameter.numel() for parameter in model.parameters())
    if verify is None and size > VERIFY_UP_TO:
        print(f"exported without verifying: {size:,} parameters, more than {VERIFY_UP_TO:,}; verify=True does it")
    with staged(path, replaces=_WEIGHTS) as folder, torch.random.fork_rng(devices=[]):
        _write(model, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        else:
            copy_tokenizer(model, folder)
        if verify or (verify is None and size <= VERIFY_UP_TO):
            _check(model, folder)


def refuse_peft(path: str | Path) -> None:
    """Refuse a folder from which `from_pretrained` would add PEFT's adapter to the merged weights."""
    if (Path(path) / "adapter_config.json").exists():
        raise UserError(f"{path} holds an adapter in PEFT's format, which would be added again: name another folder")


def _write(model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_model

    save_pretrained = getattr(type(model), "save_pretrained", None)  # transformers' own, not the patched one
    if save_pretrained is not None:
        save_pretrained(model, folder)
    else:
        save_model(model, str(folder / "model.safetensors"))


def _check(model: nn.Module, folder: Path) -> None:
    """Compare every tensor of the checkpoint with the model's.

    Raises:
        UserError: it cannot be read, or a tensor is missing or another one.
    """
    wanted = model.state_dict()
    try:
        found = _read(model, folder)
    except Exception as error:  # whatever the reader raises
        raise UserError(f"cannot export: the folder cannot be read back: {_text(error)}") from None
    for name, value in wanted.items():
        if name not in found:
            raise UserError(f"cannot export {name}: the checkpoint does not hold it")
        if not torch.equal(found[name].cpu(), value.detach().cpu()) and not _both_nan(found[name], value):
            raise UserError(f"cannot export {name}: it reads back with other values")


def _read(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    kind: Any = type(model)
    if hasattr(kind, "from_pretrained"):
        dtypes = {value.dtype for value in model.parameters() if value.is_floating_point()}
        dtype = dtypes.pop() if len(dtypes) == 1 else "auto"
        back, said = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
        if said["missing_keys"]:
            raise UserError(f"it lacks {sorted(said['missing_keys'])[0]}")
        return dict(back.state_dict())
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    places: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        places.setdefault(id(value), []).append(name)
    for names in places.values():  # save_model writes a shared tensor once
        kept = next((name for name in names if name in state), None)
        state |= {name: state[kept] for name in names} if kept else {}
    return state


def _both_nan(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.cpu().nan_to_num(), b.detach().cpu().nan_to_num())


def _text(error: object) -> str:
    return " ".join(str(error).split())[:160]
