"""Linear layers whose weight is quantised: read by dequantising one at a time, never written, run by their own call.

    y = q(W) x + b by the layer's own forward,    dx = g W,    W: (m, n) dequantised for this product and freed at once

How a package holds its weights is a `QuantisedForm` (`lorax.adapters.linears.quantised_form`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

import lorax.adapters.linears.package_forms  # noqa: F401  (registers the forms)
from lorax.adapters.kinds import bias_of, register_kind, weight_of
from lorax.adapters.linears.frozen_product import frozen_product
from lorax.adapters.linears.own_forward import OwnForwardKind
from lorax.adapters.linears.quantised_form import QuantisedForm, form_of
from lorax.errors import UserError


class QuantisedKind(OwnForwardKind):
    """A layer with a quantised weight.

    Args:
        module: the layer.
        form: how it holds its weight.
    """

    writable = False

    def __init__(self, module: nn.Module, form: QuantisedForm):
        super().__init__(module)
        vars(self._stand_in).pop("forward", None)  # one put on the instance, which computes with the original
        self.form, self._repacks = form, form.repacks(module)
        self.label = form.label(module)
        """What messages and exports call the form of the weight."""

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """Return (m, n): a packed weight has another shape."""
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]

    def weight(self, module: nn.Module) -> Tensor:
        """Return W, (m, n), dequantised: a new tensor, which is not kept here."""
        with torch.no_grad():
            return self.form.dequantise(weight_of(module), self._stand_in)

    def forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return the layer's own output; its derivative dequantises the weight again."""
        product, weight, bias = self.own_call(module), weight_of(module), bias_of(module)
        return frozen_product(x, lambda rows: product(rows, weight, bias), lambda: self.weight(module))

    def own_call(self, module: nn.Module) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """Return the layer's own product in the mode of `module`: on a CPU, bitsandbytes' int8 layers differ in theirs.

        A layer that evaluation would repack, which rounds its scales for good, is run as in training in either mode;
        one that was repacked before the adapters came stays so.
        """
        self._stand_in.training = module.training or self._repacks
        return self.product


def refuse_training(model: nn.Module, parameters: Iterable[str]) -> None:
    """Refuse to train a quantised weight.

    Args:
        model: that holds them.
        parameters: by their names in the model.

    Raises:
        UserError: names the first layer and how its weight is held.
    """
    for name in parameters:
        layer, _, leaf = name.rpartition(".")
        form = form_of(model.get_submodule(layer)) if leaf == "weight" else None
        if form is not None:
            held = form.label(model.get_submodule(layer))
            raise UserError(
                f"{layer or name} cannot be trained whole: its weight is quantised ({held}) and has no gradient; "
                "adapt it (init=lora, ...), or load the model unquantised"
            )


class LateDequantising:
    """Quantised layers that are not adapted, kept from holding float copies of their weights or repacking them.

    Args:
        model: with the layers.
        others: modules that are left alone.
    """

    def __init__(self, model: nn.Module, others: Iterable[nn.Module] = ()):
        alone = {id(module) for module in others}
        self._changed: list[nn.Module] = []
        for module in model.modules():
            form = None if id(module) in alone or "forward" in vars(module) else form_of(module)
            if form is not None and form.runs_apart and form.refusal(module) is None:
                module.forward = partial(QuantisedKind(module, form).forward, module)
                self._changed.append(module)

    def restore(self) -> None:
        """Have the layers' own calls again."""
        for module in self._changed:
            del module.forward


def _applies(module: nn.Module) -> bool:
    form = form_of(module)
    return form is not None and form.refusal(module) is None


def _kind(module: nn.Module) -> QuantisedKind:
    form = form_of(module)
    assert form is not None
    return QuantisedKind(module, form)


register_kind(_applies, _kind)
