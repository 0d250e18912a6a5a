"""transformers: checkpoints of an adapted model hold what was trained, not the base.

`Trainer` writes a checkpoint with `model.save_pretrained` and resumes with `model.load_state_dict`
on the file `model.safetensors`. On an adapted model the first writes only the adapters (and trained
heads) under that name, the second accepts such a file; both are undone with the last adapters.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lorax.adapters.files.format import save, tensors_of
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.handle import Adapters
    from lorax.adapters.installation import Installation

WEIGHTS = "model.safetensors"


def patch_checkpoints(installation: Installation, handles: list[Adapters]) -> None:
    """Let `model.save_pretrained` write the adapters only, and `load_state_dict` take them back.

    Only where the model has `save_pretrained` and one lane: lanes that share a base are saved each
    by its own `Adapters.save`.
    """
    model = installation.model
    if len(handles) != 1 or not hasattr(model, "save_pretrained"):
        return
    patches = {"save_pretrained": _Save(handles[0]), "load_state_dict": _Load(handles[0])}
    for name, patch in patches.items():
        setattr(model, name, patch)
    installation.on_restore(_Unpatch(model, tuple(patches)))


class _Save:
    """`model.save_pretrained` of an adapted model: the adapters, as `lorax.load` and Trainer read them."""

    def __init__(self, adapters: Adapters):
        self.adapters = adapters

    def __call__(self, save_directory: str | Path, is_main_process: bool = True, **_: Any) -> None:
        if is_main_process:
            save(self.adapters, save_directory, quiet=True, tensors=WEIGHTS)


class _Load:
    """`model.load_state_dict` of an adapted model: also takes a file that holds only the adapters."""

    def __init__(self, adapters: Adapters):
        self.adapters = adapters

    def __call__(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        model = self.adapters.model
        expected, _ = tensors_of(self.adapters)
        only_trained = any(".lanes." in key for key in state_dict) and set(state_dict) <= set(model.state_dict())
        if not only_trained or not _lacks_base(model, state_dict):
            return type(model).load_state_dict(model, state_dict, strict, assign)
        missing = sorted(key for key in expected if ".lanes." in key and key not in state_dict)
        if missing:
            raise UserError(f"the checkpoint lacks {missing[0]} and {len(missing) - 1} more tensors of the adapters")
        type(model).load_state_dict(model, state_dict, False, assign)
        return nn.modules.module._IncompatibleKeys([], [])


class _Unpatch:
    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        self.model = model
        self.names = names

    def __call__(self) -> None:
        for name in self.names:
            self.model.__dict__.pop(name, None)


def _lacks_base(model: nn.Module, state_dict: dict[str, Tensor]) -> bool:
    return any(key not in state_dict for key in model.state_dict() if ".lanes." not in key)
