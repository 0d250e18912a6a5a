"""How the layers of a package hold a quantised weight; a new form is a `QuantisedForm` given to `register_form`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


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
    repacks: Callable[[nn.Module], bool] = lambda module: False
    """Whether a module's own call in evaluation mode changes how its weight is stored, for good."""


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


def named(cls: type, package: str, *names: str) -> bool:
    """Whether a class or one of its bases comes from a package, and, if names are given, has one of them."""
    return any(
        f"{base.__module__}.".startswith(f"{package}.") and (not names or base.__name__ in names)
        for base in cls.__mro__
    )
