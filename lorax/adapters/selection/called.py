"""Whether every adapted layer is called: seen in the first forward pass that computes gradients, then forgotten."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.selection.coverage import abbreviated


class FirstForward:
    """Hooks that note which layers are called, and remove themselves.

    A layer's own goes at its first call, all at the end of the first pass through the model with gradients; one warning
    then names layers that were not called while none of their kind was (other experts of the same block, other layers
    of the same name may be). Later passes cost nothing.

    Args:
        model: whose forward pass is watched.
        layers: {name: adapted layer}.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, AdaptedLayer]):
        self._model = model
        self._waiting = {name: layer.acts_in for name, layer in layers.items()}
        self._called: set[str] = set()
        self.missed: list[str] = []
        """What the warning named."""
        for module in dict.fromkeys(self._waiting.values()):
            module.register_forward_pre_hook(self)
        model.register_forward_hook(self._finish)

    def __call__(self, layer: nn.Module, inputs: Any) -> None:
        """Note the call of a layer."""
        if torch.compiler.is_compiling():
            return
        drop(layer._forward_pre_hooks, self)
        for name in [name for name, other in self._waiting.items() if other is layer]:
            self._called.add(kind_of_name(name))
            del self._waiting[name]

    def _finish(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self.missed = [name for name in self._waiting if kind_of_name(name) not in self._called]
        self.remove()
        if self.missed:
            warnings.warn(
                f"the first forward pass did not call {abbreviated(self.missed)}: adapters there neither act nor train "
                "on such data; leave them out of targets",
                stacklevel=2,
            )

    def remove(self) -> None:
        """Take all hooks away."""
        for layer in self._waiting.values():
            drop(layer._forward_pre_hooks, self)
        self._waiting.clear()
        drop(self._model._forward_hooks, self._finish)


def drop(hooks: dict[int, Any], hook: Any) -> None:
    """Take a hook away, from a copied module too, whose handles are not the copy's."""
    for key in [key for key, value in hooks.items() if value == hook]:
        del hooks[key]


def kind_of_name(name: str) -> str:
    """Return a layer's name without its numbers: of the block, of the expert."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
