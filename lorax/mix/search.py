"""The cross-entropy method: a Gaussian over coefficients, moved to where the best samples lie. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Fitness = tuple[float, ...]
"""Higher is better, part by part: a later one decides between equal ones before it."""
Evaluate = Callable[[np.ndarray], Sequence[Fitness]]
"""Candidates, (P, D) -> the fitness of each."""


@dataclass(frozen=True)
class Method:
    """How the search goes.

    The loop is that of Transformer-squared's code (`optim_modules.py`, `cfgs/optimization/cem.yaml`): samples of a
    diagonal Gaussian, clamped; the best so far is a member of every generation; mean and spread are those of the elite.
    Sides taken where paper and code do not settle it: the spread has a floor (in the code it goes to zero, and the
    search may stop beside the optimum), the best so far is not evaluated again, ties are broken by the loss for the
    elite as for the best, and the generator is the search's own.
    """

    population: int = 32
    elite: float = 0.2
    """Share of a generation from which the next one's mean and spread are taken, at least two members."""
    generations: int = 50
    smoothing: float = 0.0
    """Share of the former mean and spread that stays."""
    std: float = 0.5
    """Spread at the start."""
    floor: float = 0.02
    """The spread never falls below it."""
    low: float = 0.0
    high: float = 1.0
    """Bounds of a coefficient."""
    seed: int = 0


@dataclass
class State:
    """Where a search stands: all that the next generation depends on."""

    mean: list[float]
    std: list[float]
    best: list[float]
    fitness: list[float] = field(default_factory=list)
    """Of the best; empty before the first generation."""
    generation: int = 0
    """How many are over."""
    evaluations: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry a generation: the best's fitness, its members' mean, the largest spread."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, from which `State(**data)` goes on."""
        return asdict(self)


def begin(start: Sequence[float], method: Method) -> State:
    """Return the state before the first generation, whose first member is the start."""
    mean = np.clip(np.asarray(start, dtype=float), method.low, method.high).tolist()
    return State(mean, [max(method.std, method.floor)] * len(mean), list(mean))


def search(evaluate: Evaluate, state: State, method: Method, after: Callable[[State], None] | None = None) -> State:
    """Search until the last generation and return the state then; `state.best` is the best that was seen.

    Generation g draws from a generator of its own, (seed, g), so that a search that was stopped goes on as it would
    have gone.

    Args:
        evaluate: gives the fitness of candidates, (P, D); what is not finite counts as the worst.
        state: from `begin`, or kept by `after`; it is changed.
        method: bounds, sizes and the seed.
        after: is called with the state after each generation.
    """
    while state.generation < method.generations:
        generator = np.random.default_rng([method.seed, state.generation])
        noise = generator.standard_normal((method.population, len(state.mean)))
        members = np.clip(np.asarray(state.mean) + np.asarray(state.std) * noise, method.low, method.high)
        members[0] = state.best
        known = 1 if state.fitness else 0
        found = [*[tuple(state.fitness)] * known, *(_ordered(one) for one in evaluate(members[known:]))]
        order = sorted(range(len(found)), key=lambda index: found[index], reverse=True)  # stable: ties keep their order
        state.best, state.fitness = members[order[0]].tolist(), list(found[order[0]])
        elite = members[order[: max(2, int(method.elite * method.population))]]
        keep = method.smoothing
        state.mean = (keep * np.asarray(state.mean) + (1 - keep) * elite.mean(0)).tolist()
        spread = keep * np.asarray(state.std) + (1 - keep) * elite.std(0, ddof=1)
        state.std = np.maximum(spread, method.floor).tolist()
        state.generation += 1
        state.evaluations += len(found) - known
        finite = [one[0] for one in found if math.isfinite(one[0])]
        mean = sum(finite) / len(finite) if finite else -math.inf
        state.history.append({"best": state.fitness[0], "mean": mean, "spread": max(state.std)})
        if after is not None:
            after(state)
    return state


def _ordered(fitness: Fitness) -> Fitness:
    """Return a fitness that can be compared: what is no number is the worst."""
    return tuple(-math.inf if math.isnan(part) else float(part) for part in fitness)
