"""Simulated studies in which every arm has a curve over learning rates, for verdicts about methods.

    score of arm a at lattice point k, seed s = peak_a - step_a (k - off_a)^2 + common_s + u_as + v_ask

on validation and on test of the same runs, each with the noise of its items. The peak lies on a lattice point or
between two; a pilot of other seeds finds the first rate, as in a study. The name of a world seeds its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

RATES, PILOT = 12, slice(3, 9)
"""Lattice points that runs may use, and those of the pilot."""
_PLACES = np.arange(RATES) - (RATES - 1) / 2


@dataclass(frozen=True)
class World:
    """What is simulated; scores are fractions."""

    name: str
    seeds: int = 8
    arms: int = 11
    """Besides the reference."""
    spread: tuple[float, ...] = (0.014,)
    """Sd between runs of an arm, drawn for each arm; 30 % of its variance is the seed's, the rest the run's."""
    step: tuple[float, ...] = (0.02,)
    """Loss one lattice step beside the peak, drawn for each arm."""
    reference_spread: float | None = None
    """Sd of the reference; None: drawn as the others."""
    on_grid: bool = False
    """Whether peaks lie on lattice points; else anywhere between."""
    cliff: float = 1.0
    """By how much the curve falls faster above the peak."""
    shared: float = 0.01
    """Sd of what validation items add to each arm and rate, the same for all seeds."""
    own: float = 0.011
    """Sd of what validation items add to each run."""
    items: float = 0.007
    """Sd of what test items add to each run."""
    common: float = 0.005
    """Sd of what a seed adds to all arms."""
    tuning_seeds: int = 2
    heavy: bool = False
    """Whether runs are spread as Student's t with 3 degrees of freedom."""
    split: float = 0.0
    """What every second run of the reference lacks."""
    collapse: float = 0.0
    """Chance that a run of any arm but the reference scores 0."""
    score: float = 0.6
    """Expected score at the reference's peak."""
    effects: tuple[float, ...] = ()
    """Peak minus the reference's, of the first arms; the others have none."""
    margin: float = 0.01


@dataclass(frozen=True)
class Batch:
    """Some simulated studies, arrays (tables, arms + 1, rates, seeds); arm 0 is the reference."""

    pilot: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    peak: np.ndarray
    """(tables, arms) true difference of the peaks."""
    lattice: np.ndarray
    """(tables, arms) true difference of the best lattice points: the estimand `method`."""
    spread: np.ndarray
    """(tables, arms) sd of each arm."""
    level: np.ndarray
    """(tables, arms + 1, rates) expected scores, but for a second group of runs and collapses."""


def draws(world: World, tables: int, seed: int = 0, batch: int = 200) -> Iterator[Batch]:
    """Yield simulated studies in batches; the same world and seed give the same studies."""
    generator = np.random.default_rng([seed, *world.name.encode()])
    for start in range(0, tables, batch):
        yield _draw(world, min(batch, tables - start), generator)


def _draw(w: World, tables: int, g: np.random.Generator) -> Batch:
    shape = tables, w.arms + 1
    off = g.integers(-1, 1, shape) + 0.5 if w.on_grid else g.uniform(-1, 1, shape)
    step, spread = g.choice(w.step, shape), g.choice(w.spread, shape)
    if w.reference_spread is not None:
        spread[:, 0] = w.reference_spread
    effects = np.zeros(w.arms + 1)
    effects[1 : len(w.effects) + 1] = w.effects
    distance = _PLACES - off[..., None]
    loss = step[..., None] * np.where(distance > 0, w.cliff, 1.0) * distance**2
    level = w.score + effects[:, None] - np.minimum(loss, 0.38)
    pilot, _ = _runs(w, g, level, spread, w.tuning_seeds, np.hypot(w.own, w.shared), 0.0)
    validation, test = _runs(w, g, level, spread, w.seeds, w.own, w.shared)
    expected = level.max(axis=-1)
    expected[:, 0] -= w.split / 2
    expected[:, 1:] *= 1 - w.collapse
    peak = w.score + effects - np.array([w.split / 2, *[0.0] * w.arms])
    peak[1:] *= 1 - w.collapse
    return Batch(
        pilot,
        validation,
        test,
        np.broadcast_to(peak[1:] - peak[0], (tables, w.arms)),
        expected[:, 1:] - expected[:, :1],
        spread[:, 1:],
        level,
    )


def _runs(
    w: World, g: np.random.Generator, level: np.ndarray, spread: np.ndarray, seeds: int, own: float, shared: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores on validation and test, (tables, arms + 1, rates, seeds)."""
    shape = *level.shape, seeds

    def noise(shape: tuple[int, ...]) -> np.ndarray:
        return g.standard_t(3, shape) / np.sqrt(3) if w.heavy else g.standard_normal(shape)

    of_seed = noise((*shape[:2], 1, seeds)) * np.sqrt(0.3) + noise(shape) * np.sqrt(0.7)
    run = level[..., None] + g.normal(0, w.common, (shape[0], 1, 1, seeds)) + spread[:, :, None, None] * of_seed
    if w.split:
        run[:, 0] -= w.split * (g.random((shape[0], 1, seeds)) < 0.5)
    validation = run + g.normal(0, own, shape) + g.normal(0, 1, (*shape[:3], 1)) * shared
    test = run + g.normal(0, w.items, shape)
    if w.collapse:
        lost = g.random((shape[0], shape[1], 1, seeds)) < w.collapse
        lost[:, 0] = False
        validation, test = np.where(lost, 0.0, validation), np.where(lost, 0.0, test)
    return np.clip(validation, 0, 1), np.clip(test, 0, 1)
