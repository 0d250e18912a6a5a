"""Linear layers whose weight is quantised: read by dequantising one at a time, never written, run by their own call.

    y = q(W) x + b by the layer's own forward,    dx = g W,    W: (m, n) dequantised for this product and freed at once

A form says how the layers of a package hold their weight. None of the packages is imported: their classes are known
by name. A new form is a `QuantisedForm` given to `register_form`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters.kinds import bias_of, register_kind, weight_of
from lorax.adapters.linears.frozen_product import frozen_product
from lorax.adapters.linears.own_forward import OwnForwardKind
from lorax.errors import UserError


@dataclass(frozen=True)
class QuantisedForm:
    """How a package's layers hold a quantised weight."""

    applies: Callable[[nn.Module], bool]
    """Whether a module is of this form."""
    dequantise: Callable[[Tensor, nn.Module], Tensor]
    """dequantise(stored weight, module for what else the layer holds) -> W, (m, n), a new tensor."""
    label: Callable[[nn.Module], str]
    """What messages and exports call it."""
    refusal: Callable[[nn.Module], str | None] = lambda module: None
    """Why a module of this form cannot be adapted, and what to do; None: it can."""
    runs_apart: bool = False
    """Whether the layers' own call, left alone, keeps a float copy of the weight for the backward pass, or changes how
    the weight is stored."""


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
        self._stand_in.training = True  # bitsandbytes repacks weights in evaluation mode, for good
        self.form = form
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
        weight, bias = weight_of(module), bias_of(module)
        return frozen_product(x, lambda rows: self.product(rows, weight, bias), lambda: self.weight(module))


_FORMS: list[QuantisedForm] = []


def register_form(form: QuantisedForm) -> None:
    """Make a form of quantised weights known; the forms registered earlier are asked first."""
    _FORMS.append(form)


def form_of(module: nn.Module) -> QuantisedForm | None:
    """Return how a module holds its quantised weight; None where it has none, or not in a form known here."""
    if module._parameters.get("weight") is None:
        return None
    return next((form for form in _FORMS if form.applies(module)), None)


def refusal(module: nn.Module) -> str | None:
    """Return why a layer of a known form cannot be adapted and what to do; None for one that can, or of no form."""
    form = form_of(module)
    return None if form is None else form.refusal(module)


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


def named(cls: type, package: str, *names: str) -> bool:
    """Whether a class or one of its bases comes from a package, and, if names are given, has one of them."""
    return any(
        f"{base.__module__}.".startswith(f"{package}.") and (not names or base.__name__ in names)
        for base in cls.__mro__
    )


def _plain_call(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _torchao(module: nn.Module) -> bool:
    weight: Any = module._parameters["weight"]
    readable = named(type(weight), "torchao", "NF4Tensor") or (
        named(type(weight), "torchao", "TorchAOBaseTensor") and hasattr(weight, "dequantize")
    )
    return _plain_call(module) and readable and weight.ndim == 2


def _from_torchao(weight: Any, module: nn.Module) -> Tensor:
    if named(type(weight), "torchao", "NF4Tensor"):
        return weight.get_original_weight()
    return weight.dequantize()


def _torchao_refusal(module: nn.Module) -> str | None:
    weight: Any = module._parameters["weight"]
    kept = [getattr(weight, name, None) for name in ("act_quant_kwargs", "activation_quantization", "act_pre_scale")]
    if any(one is not None for one in kept):
        return (
            f"{type(module).__name__} is quantised (torchao {type(weight).__name__}) together with its inputs, "
            "which have no gradient then; quantise the weights alone (Int8WeightOnlyConfig)"
        )
    return None


def _bnb(module: nn.Module) -> bool:
    return named(type(module), "bitsandbytes", "Linear4bit", "Linear8bitLt")


def _four_bit(module: nn.Module) -> bool:
    return named(type(module), "bitsandbytes", "Linear4bit")


def _state_of(weight: Any, module: nn.Module) -> Any:
    state = getattr(weight, "quant_state", None)
    return getattr(module, "quant_state", None) if state is None else state


def _from_bnb(weight: Any, module: nn.Module) -> Tensor:
    if not _four_bit(module):
        state: Any = module.state
        scales = weight.SCB if getattr(weight, "SCB", None) is not None else state.SCB
        return weight.data.to(torch.float32) * (scales.to(torch.float32)[:, None] / 127)
    import bitsandbytes.functional as functional

    data, state = weight.data, _state_of(weight, module)
    if getattr(state, "packing_format_for_cpu", False):  # after an evaluation before the adapters came
        data, state = functional._convert_weight_packed_for_cpu_inverse(data, state)
    return functional.dequantize_4bit(data, state)


def _bnb_label(module: nn.Module) -> str:
    if not _four_bit(module):
        return "bitsandbytes int8"
    return f"bitsandbytes {getattr(module._parameters['weight'], 'quant_type', '4-bit')}"


def _bnb_refusal(module: nn.Module) -> str | None:
    weight: Any = module._parameters["weight"]
    if _four_bit(module):
        ready = _state_of(weight, module) is not None
    else:
        state: Any = module.state
        if state.has_fp16_weights:
            return "Linear8bitLt holds float16 weights (has_fp16_weights=True); load the model with load_in_8bit"
        ready = getattr(weight, "SCB", None) is not None or state.SCB is not None
    if not ready:
        return f"{type(module).__name__} (bitsandbytes) is not quantised yet; move the model to its device first"
    return None


register_form(
    QuantisedForm(
        _torchao,
        _from_torchao,
        lambda module: f"torchao {type(module._parameters['weight']).__name__}",
        _torchao_refusal,
        runs_apart=True,
    )
)
register_form(QuantisedForm(_bnb, _from_bnb, _bnb_label, _bnb_refusal, runs_apart=True))


def _applies(module: nn.Module) -> bool:
    form = form_of(module)
    return form is not None and form.refusal(module) is None


def _kind(module: nn.Module) -> QuantisedKind:
    form = form_of(module)
    assert form is not None
    return QuantisedKind(module, form)


register_kind(_applies, _kind)
