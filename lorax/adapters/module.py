"""AdaptedModule: adapters at a submodule that is no linear layer, such as an MLP or attention block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lorax.adapters.adapted import AdaptedLayer
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.layer_adapter import LayerAdapter
    from lorax.adapters.pack_state import PackState


class AdaptedModule(AdaptedLayer):
    """A submodule with one tensor in and one out, and the adapters of one or more lanes.

    Its children, parameters and buffers are the replaced module's own, so the model's state-dict keys do
    not change; attributes that it lacks are looked up there.
    """

    _replaced: nn.Module

    def __init__(self, base: nn.Module, adapters: Mapping[int, LayerAdapter], pack: PackState, name: str):
        super().__init__(base, {}, pack, name)
        if "lanes" in base._modules:
            raise UserError(f"{name}: its module has a child named 'lanes', which is the adapters' name")
        object.__setattr__(self, "_replaced", base)
        for held in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            setattr(self, held, getattr(base, held))
        self._modules = dict(base._modules)
        self._add_adapters(adapters)
        for adapter in adapters.values():
            adapter.bind(base)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the adapted output of the one tensor that is given.

        Raises:
            UserError: other arguments, or an output that is no tensor.
        """
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise UserError(f"{self.name} ({type(self._replaced).__name__}) is called with more than one tensor")
        return self.forward_reference(args[0])

    def base(self, x: Tensor) -> Tensor:
        """Return the replaced module's own output.

        Raises:
            UserError: it is no tensor.
        """
        self._replaced.training = self.training  # it is no part of the model, which may have been switched
        y = self._replaced.forward(x)
        if not isinstance(y, Tensor):
            kind, out = type(self._replaced).__name__, type(y).__name__
            raise UserError(f"{self.name} ({kind}) returns {out}, where one tensor is needed")
        return y

    def train(self, mode: bool = True) -> AdaptedModule:
        """Switch the replaced module too."""
        self._replaced.train(mode)
        return super().train(mode)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_replaced" not in self.__dict__:
                raise  # while a copy is being made
            return getattr(self._replaced, name)
