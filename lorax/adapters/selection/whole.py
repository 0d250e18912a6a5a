"""Modules that train whole beside the adapters (a classifier's head): their parameters, and where they started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class TrainedWhole:
    """Parameters of the model itself that train; the values before are kept in main memory.

    Args:
        model: with everything else frozen.
        parameters: their names in the model.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[str]):
        named = dict(model.named_parameters())
        self.named: dict[str, nn.Parameter] = {name: named[name] for name in sorted(parameters)}
        self._start = {name: p.detach().to("cpu", copy=True) for name, p in self.named.items()}
        for parameter in self.named.values():
            parameter.requires_grad_(True)

    def restore(self) -> None:
        """Put back the values from before, bit for bit."""
        for name, parameter in self.named.items():
            parameter.data = self._at_start(name)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Compute with the values from before for a while."""
        now = {name: parameter.data for name, parameter in self.named.items()}
        self.restore()
        try:
            yield
        finally:
            for name, parameter in self.named.items():
                parameter.data = now[name]

    def _at_start(self, name: str) -> Tensor:
        here = self.named[name]
        return self._start[name].to(device=here.device, dtype=here.dtype, copy=True)


def with_parameters(model: nn.Module) -> list[str]:
    """Return the names of the modules that hold parameters, themselves or in what is inside."""
    return [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]


def parameters_of(model: nn.Module, modules: Iterable[str]) -> list[str]:
    """Return the names of the float parameters in these modules, as the model names them."""
    names: list[str] = []
    inside = {id(p) for module in modules for p in model.get_submodule(module).parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in inside and torch.is_floating_point(parameter):
            names.append(name)
    return names
