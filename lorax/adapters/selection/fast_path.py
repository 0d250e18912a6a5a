"""torch's fast path of `nn.TransformerEncoderLayer` reads weights past the layers; it is off where they are adapted."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class FastPath:
    """The switches of torch's fast path around adapted layers.

    In eval mode without gradients torch computes the whole block from its weights, so that an adapter in it would do
    nothing. The layers' own forward computes the same up to rounding.

    Args:
        model: with the layers.
        names: of the layers that are adapted.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        prefixes = {name[:cut] for name in names for cut in range(len(name)) if name[cut] == "."} | {""}
        self._before: list[tuple[nn.Module, str, object]] = []
        for name, module in model.named_modules():
            if name not in prefixes:
                continue
            if isinstance(module, nn.TransformerEncoderLayer):
                self._switch(module, "activation_relu_or_gelu", 0)
            elif isinstance(module, nn.TransformerEncoder):
                self._switch(module, "use_nested_tensor", False)  # its layers then get nested tensors

    def _switch(self, module: nn.Module, key: str, value: object) -> None:
        if hasattr(module, key):
            self._before.append((module, key, getattr(module, key)))
            setattr(module, key, value)

    def restore(self) -> None:
        """Put the switches back."""
        for module, key, value in self._before:
            setattr(module, key, value)
