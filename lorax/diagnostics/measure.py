"""measure: all diagnostics of one arm after training, as the record keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorax.adapters.baselines import FullModel
from lorax.adapters.factors import Factors
from lorax.adapters.kinds import linear_with
from lorax.diagnostics.alignment import ADAM_STEP, first_step_alignment
from lorax.diagnostics.angles import Angle
from lorax.diagnostics.forgetting import WINDOW, forgetting
from lorax.diagnostics.layer_summary import Row, sample, summarise
from lorax.diagnostics.natural_text import Text
from lorax.diagnostics.update_shape import EPSILON, SUBSPACE, TOP_K, update_shape
from lorax.errors import UserError, near
from lorax.probing.cache import Cache
from lorax.probing.probe import Probe

if TYPE_CHECKING:
    from lorax.adapters.handle import Adapters
    from lorax.models.registry import Loaded

VERSION = 1  # raised when a metric changes its meaning


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    targets: Sequence[str] | None = None
    """Names of the layers; None: all that the arm adapts. For full fine-tuning, which trains more, give those that the
    other arms adapt."""
    every: int = 1
    """Of each kind of layer, only one in `every` is measured."""
    rank: int | None = None
    """r at which captured gradient energy is reported; None takes each layer's own."""
    adam_step: float = ADAM_STEP
    """Size of the first Adam step."""
    subspace: int = SUBSPACE
    """Dimension of W0's top and bottom singular subspaces."""
    top_k: int = TOP_K
    """How many singular vectors of W' are checked for intruder dimensions (arXiv:2410.21228)."""
    epsilon: float = EPSILON
    """The cosine below which such a vector is an intruder."""
    text: Text | str | None = None
    """For forgetting; see `natural_text.load_text`."""
    forgetting_tokens: int = 50_000
    """At least so many tokens are predicted; 0 leaves forgetting out."""
    window: int = WINDOW
    """Tokens in each window of that text."""

    def about(self) -> dict[str, Any]:
        """Return the settings that the record keeps."""
        return {
            "every": self.every, "rank": self.rank, "subspace": self.subspace, "top_k": self.top_k,
            "epsilon": self.epsilon, "adam_step": self.adam_step,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class References:
    """What an arm is compared with, by layer. What is missing leaves out the metrics that need it."""

    factors: Mapping[str, Factors] = field(default_factory=dict)
    """The arm's factors at step 0. Full fine-tuning has none and needs none."""
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    """(m, n) gradients of the loss at W0, taken before a fresh head has trained."""
    full_update: Mapping[str, Tensor] = field(default_factory=dict)
    """(m, n) W' - W0 of full fine-tuning on the same task; read a layer at a time."""


def measure(
    loaded: Loaded,
    adapters: Adapters | FullModel,
    settings: Settings,
    references: References,
    *,
    autocast_dtype: str | None = None,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Measure an arm: its first step, its final update, and what it forgot. The model is as before afterwards.

    Args:
        loaded: the model, with the arm's adapters on it.
        adapters: the arm, trained; in a pack, one run's.
        settings: what is measured.
        references: what it is compared with.
        autocast_dtype: dtype of the forward pass by autocast, or None.
        cache: keeps the decompositions of W0 and the base's losses on the text.

    Returns:
        `layer_summary.summarise` of all metrics: those of `alignment.first_step_alignment`; cosine_final (with full
        fine-tuning's update) and cosine_final_gradient (with -G); those of `update_shape.update_shape`.
        Then forgetting (the change in nats per token), forgetting_text (its details) and about (the settings).
        What could not be measured is null.

    Raises:
        UserError: a target the arm does not adapt, or one without a gradient.
    """
    names = sample(_adapted(settings.targets, adapters), settings.every)
    angles: dict[str, Angle] = {}
    rows = [_row(name, adapters, settings, references, angles, cache) for name in names]
    forgot = None
    if settings.forgetting_tokens:
        forgot = forgetting(
            loaded, adapters, settings.text, settings.forgetting_tokens,
            window=settings.window, autocast_dtype=autocast_dtype, cache=cache,
        )  # fmt: skip
    headlines, details = summarise(names, rows, angles) if names else ({}, {})
    return {
        **headlines,
        "forgetting": None if forgot is None else forgot["change"],
        **details,
        "forgetting_text": forgot,
        "about": {"version": VERSION, "n_layers": len(adapters.names()), "n_measured": len(names), **settings.about()},
    }


def _adapted(targets: Sequence[str] | None, adapters: Adapters | FullModel) -> list[str]:
    adapted = adapters.names()
    if targets is None or not adapted:
        return adapted
    for name in targets:
        if name not in adapted:
            raise UserError(f"diagnostics: layer {name} is not adapted; {near(name, adapted)}")
    return list(targets)


def _row(
    name: str,
    adapters: Adapters | FullModel,
    settings: Settings,
    references: References,
    angles: dict[str, Angle],
    cache: Cache | None,
) -> Row:
    """Measure one layer."""
    row: Row = {}
    if isinstance(adapters, FullModel):
        factors, W0 = None, adapters.frozen_weight(name)
    else:
        start, W0 = references.factors.get(name), adapters.linear(name).start()
        factors = start if isinstance(start, Factors) else None  # other plans have no first step in closed form
    if references.gradients and (factors is not None or isinstance(adapters, FullModel)):
        row = _first(name, factors, settings, references, angles)
    delta = adapters.delta([name])[name]
    row |= _final(name, delta, references, angles)
    base = Probe(name, linear_with(W0.to(delta.device)), cache=cache)  # initialisers may have cached the decomposition
    shape = update_shape(base.weight, delta, base.full_svd(), settings.subspace, settings.top_k, settings.epsilon)
    return row | shape


@torch.no_grad()
def _first(
    name: str, factors: Factors | None, settings: Settings, references: References, angles: dict[str, Angle]
) -> Row:
    """The first step, with factors or, for full fine-tuning, without."""
    if name not in references.gradients:
        raise UserError(f"diagnostics: no gradient for layer {name}; {near(name, references.gradients)}")
    rank = settings.rank or (SUBSPACE if factors is None else factors.rank)
    return first_step_alignment(factors, references.gradients[name], rank, settings.adam_step, angles)


def _final(name: str, delta: Tensor, references: References, angles: dict[str, Angle]) -> Row:
    """The final update against that of full fine-tuning, and against the gradient at W0."""
    row: Row = {"cosine_final": None, "cosine_final_gradient": None}
    if name in references.full_update:
        full = references.full_update[name].to(delta)
        row["cosine_final"] = angles.setdefault("cosine_final", Angle()).add(delta, full)
    if name in references.gradients:
        angle = angles.setdefault("cosine_final_gradient", Angle())
        row["cosine_final_gradient"] = angle.add(delta, -references.gradients[name].to(delta))
    return row
