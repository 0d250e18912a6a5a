"""An adapted model as exports see it: low-rank factors by layer, and what else was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class LowRank:
    """One layer's change as a plain product, W' = W0 + B A."""

    B: Tensor
    """(m, r)"""
    A: Tensor
    """(r, n)"""
    delta: Callable[[], Tensor]
    """Gives W' - W0, (m, n), as the adapter itself makes it."""
    matrix: Callable[[Tensor], Tensor]
    """Gives a tensor in the layout of the stored weight as (m, n); an expert's part of all experts' weights."""
    transposed: bool
    """Whether the weight is stored as (n, m), or an expert's as (E, n, m)."""
    rounded: bool
    """Whether delta has a rounding of the stored weight in it that B A lacks."""
    lengths: Tensor | None = None
    """(m,), of the rows of W' under DoRA: then W' = diag(lengths / ||W0 + B A||_row) (W0 + B A), and delta is B A."""


@dataclass(frozen=True)
class Expert:
    """Where a layer lies that is one matrix of a parameter with one for each expert, (E, ...)."""

    parameter: str
    """The parameter's full name."""
    index: int
    """Of the expert."""
    count: int
    """E, how many experts the parameter holds."""


@dataclass(frozen=True)
class AdaptedModel:
    """A model with one run's adapters on it."""

    model: nn.Module
    layers: Mapping[str, LowRank]
    """The run's adapters by layer name."""
    places: Mapping[str, str]
    """Every place of an adapted layer, of any run: its name. A layer may stand in several places."""
    experts: Mapping[str, Expert]
    """Which adapted layers, of any run, are experts in one parameter."""
    beside: Mapping[str, Tensor]
    """What trains beside the adapters, by the model's first name of it."""
    as_base: Callable[[], AbstractContextManager[None]]
    """Has the base model's modules and W0 in `model` for a while; `beside` keeps its values."""
    as_adapted: Callable[[], AbstractContextManager[None]]
    """Lets `model` compute with this run's adapters alone for a while."""
