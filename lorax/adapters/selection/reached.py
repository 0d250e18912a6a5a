"""Whether the loss reaches every adapted layer: seen in the first backward pass, then forgotten.

A layer may be called and its output left unused, as a pooler's is where the loss does not ask for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.selection.called import FirstForward, drop, kind_of_name
from lorax.adapters.selection.coverage import abbreviated

if TYPE_CHECKING:
    from lorax.adapters.installation import Installation


class FirstBackward:
    """Hooks that note which layers get a gradient, and remove themselves.

    A tensor's own goes with its first gradient, all at the second forward pass with gradients through the model; one
    warning then names layers that were called and got none, while none of their kind did. Later passes cost nothing.

    Args:
        model: whose training is watched.
        layers: {name: adapted layer}.
        forward: what it found uncalled is not named again.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, AdaptedLayer], forward: FirstForward):
        self._model, self._forward = model, forward
        self._waiting = {
            name: [p for p in layer.lanes.parameters() if p.requires_grad] for name, layer in layers.items()
        }
        self._names = {id(p): name for name, tensors in self._waiting.items() for p in tensors}
        self._reached: set[str] = set()
        for tensors in self._waiting.values():
            for parameter in tensors:
                parameter.register_post_accumulate_grad_hook(self)
        model.register_forward_pre_hook(self._look)

    def __call__(self, parameter: Tensor) -> None:
        """Note that a layer's tensor has its gradient."""
        name = self._names[id(parameter)]
        self._reached.add(name)
        for own in self._waiting.pop(name, []):
            _drop_of(own, self)

    def _look(self, model: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not self._reached:
            return
        waiting = {name: own for name, own in self._waiting.items() if name not in self._forward.missed}
        trains = [name for name, tensors in waiting.items() if any(p.requires_grad for p in tensors)]
        missed = of_no_reached_kind(trains, self._reached)
        self.remove()
        if missed:
            warnings.warn(
                f"the first backward pass did not reach {abbreviated(missed)}: adapters there do not train on such "
                "data; leave them out of targets",
                stacklevel=2,
            )

    def remove(self) -> None:
        """Take all hooks away."""
        for tensors in self._waiting.values():
            for parameter in tensors:
                _drop_of(parameter, self)
        self._waiting.clear()
        drop(self._model._forward_pre_hooks, self._look)


def watch(installation: Installation) -> None:
    """Watch the first forward and the first backward pass of a model with adapters.

    Args:
        installation: the model with its adapted layers.
    """
    forward = FirstForward(installation.model, installation.layers)
    installation.on_restore(forward.remove)
    installation.on_restore(FirstBackward(installation.model, installation.layers, forward).remove)


def of_no_reached_kind(missed: Collection[str], reached: Collection[str]) -> list[str]:
    """Return the names of which no other layer of the same name, in another block or expert, is among `reached`.

    Examples:
        >>> of_no_reached_kind(["experts.1.up", "pooler"], ["experts.0.up"])
        ['pooler']
    """
    kinds = {kind_of_name(name) for name in reached}
    return [name for name in missed if kind_of_name(name) not in kinds]


def _drop_of(parameter: Tensor, hook: FirstBackward) -> None:
    hooks = getattr(parameter, "_post_accumulate_grad_hooks", None)
    if hooks:
        drop(hooks, hook)
