"""transformers: checkpoints of an adapted model hold what was trained, not the base.

`Trainer` writes a checkpoint with `model.save_pretrained` and resumes with `model.load_state_dict`
on the file `model.safetensors`. On an adapted model the first writes only the adapters (and trained
heads) under that name, the second accepts such a file; both are undone with the last adapters.

Such a file is no model: beside a config.json, `from_pretrained` would fill what it lacks with random
numbers. So it holds one tensor of the base's name in another shape, on which `from_pretrained` stops;
a folder that holds a model already is refused; and a call that is not Trainer's says what was written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lorax.adapters.files.format import save, tensors_of
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.handle import Adapters
    from lorax.adapters.installation import Installation

WEIGHTS = "model.safetensors"
_WAYS = "adapters.save(folder) for lorax.load, adapters.export_merged(folder) for from_pretrained, export_peft for PEFT"


def patch_checkpoints(installation: Installation, handles: list[Adapters]) -> None:
    """Let `model.save_pretrained` write the adapters only, and `load_state_dict` take them back.

    Only where the model has `save_pretrained`. Lanes that share a base are saved each by its own
    `Adapters.save`: there `save_pretrained` refuses, as `push_to_hub` does everywhere.
    """
    model = installation.model
    if not hasattr(model, "save_pretrained"):
        return
    patches: dict[str, Callable[..., Any]] = {"push_to_hub": _Refuse("push_to_hub uploads no adapted model")}
    if len(handles) == 1:
        patches |= {"save_pretrained": _Save(handles[0]), "load_state_dict": _Load(handles[0])}
    else:
        patches["save_pretrained"] = _Refuse(f"save_pretrained: {len(handles)} runs share this base")
    for name, patch in patches.items():
        setattr(model, name, patch)
    installation.on_restore(_Unpatch(model, tuple(patches)))


class _Save:
    """`model.save_pretrained` of an adapted model: the adapters, as `lorax.load` and Trainer read them."""

    def __init__(self, adapters: Adapters):
        self.adapters = adapters

    def __call__(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **others: Any,
    ) -> None:
        if push_to_hub:
            raise UserError(f"save_pretrained: push_to_hub uploads no adapted model; use {_WAYS}")
        if not is_main_process:
            return
        if (Path(save_directory) / "config.json").exists():
            raise UserError(f"save_pretrained: {save_directory} holds a model, whose weights would go; use {_WAYS}")
        save(self.adapters, save_directory, quiet=True, tensors=WEIGHTS, beside=_guard(self.adapters.model))
        if "state_dict" not in others:  # Trainer names it
            warnings.warn(f"{save_directory} holds the adapters alone, not a model; use {_WAYS}", stacklevel=2)


class _Load:
    """`model.load_state_dict` of an adapted model: also takes a file that holds only the adapters."""

    def __init__(self, adapters: Adapters):
        self.adapters = adapters

    def __call__(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        model = self.adapters.model
        here = model.state_dict()
        guards = [key for key, value in state_dict.items() if not value.numel() and key in here and here[key].numel()]
        state_dict = {key: value for key, value in state_dict.items() if key not in guards} if guards else state_dict
        expected, _ = tensors_of(self.adapters)
        only_trained = any(".lanes." in key for key in state_dict) and set(state_dict) <= set(here)
        if not only_trained or not _lacks_base(model, state_dict):
            return type(model).load_state_dict(model, state_dict, strict, assign)
        missing = sorted(key for key in expected if ".lanes." in key and key not in state_dict)
        if missing:
            raise UserError(f"the checkpoint lacks {missing[0]} and {len(missing) - 1} more tensors of the adapters")
        type(model).load_state_dict(model, state_dict, False, assign)
        return nn.modules.module._IncompatibleKeys([], [])


class _Refuse:
    """A method of the model that would write it as if it were a plain one."""

    def __init__(self, why: str):
        self.why = why

    def __call__(self, *_: Any, **__: Any) -> None:
        raise UserError(f"{self.why}; use {_WAYS}")


class _Unpatch:
    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        self.model = model
        self.names = names

    def __call__(self) -> None:
        for name in self.names:
            self.model.__dict__.pop(name, None)


def _guard(model: nn.Module) -> dict[str, Tensor]:
    """Return an empty tensor under the name of a frozen weight: a shape on which every plain loader stops."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and parameter.numel() and ".lanes." not in name:
            return {name: parameter.detach().new_empty((0,))}
    return {}


def _lacks_base(model: nn.Module, state_dict: dict[str, Tensor]) -> bool:
    return any(key not in state_dict for key in model.state_dict() if ".lanes." not in key)
