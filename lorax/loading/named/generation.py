"""Rows of different adapters through transformers' generate, which repeats each row for beams and several answers."""

from __future__ import annotations

from typing import Any

from torch import nn

from lorax.adapters.pack_state import PackState

_EXPAND = "_expand_inputs_for_generation"


class Expanded:
    """While it is on, `generate` repeats the rows' routing as it repeats the rows, and puts it back at its end.

    An encoder runs before the rows are repeated, the decoder after it.

    Args:
        model: any; one without `generate` is left alone.
        pack: with the routing of the batch as it is given.
    """

    def __init__(self, model: nn.Module, pack: PackState):
        self.model, self.pack, self.routing = model, pack, pack.routing
        self._on = hasattr(model, "generate") and hasattr(model, _EXPAND)
        if self._on:
            self._before = {name: vars(model)[name] for name in ("generate", _EXPAND) if name in vars(model)}
            self._generate, self._expand = getattr(model, "generate"), getattr(model, _EXPAND)  # noqa: B009
            vars(model).update({"generate": self.generate, _EXPAND: self.expand})

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate, and put the rows' routing back."""
        try:
            return self._generate(*args, **kwargs)
        finally:
            self.pack.routing = self.routing

    def expand(self, expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        """Repeat the rows and their routing."""
        if self.routing is not None and expand_size > 1:
            self.pack.routing = self.routing.repeated(expand_size)
        return self._expand(expand_size, *args, **kwargs)

    def take_off(self) -> None:
        """Give the model its own methods back."""
        if self._on:
            for name in ("generate", _EXPAND):
                vars(self.model).pop(name, None)
            vars(self.model).update(self._before)
