"""Simulated studies with known true differences: arms x seeds x items, after selection of learning rates.

    P(arm a, seed s solves item i) = logistic(ability_a(lr) + u_as - b_i - w_ai),   u_as = common_s + apart_as

The item set is the test set of a study: it is drawn once a scenario, and abilities are solved so that the
expected scores over seeds on this set differ by exactly the effects of the scenario.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from lorax.stats.selection import pick

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
RATES, TUNING_SEEDS = 6, 2


@dataclass(frozen=True)
class Scenario:
    """What is simulated."""

    name: str
    rate: float = 0.6
    """Expected score of the reference."""
    seed_sd: float = 0.01
    """Sd of an arm's expected score over seeds; the noise of items is added to it."""
    seeds: int = 6
    items: int = 1000
    effects: tuple[float, ...] = (0.0,) * 8
    """True differences from the reference, one per arm."""
    margin: float = 0.01
    spread: float = 1.5
    """Sd of item difficulties (logits)."""
    interaction: float = 0.5
    """Sd of the difficulty that an item has for one arm only (logits)."""
    shared: float = 0.3
    """Share of the seed variance that is common to all arms (data order)."""
    curve: float = 0.0
    """Ability lost per squared grid step from the best learning rate (logits); 0: all rates are equal."""
    validation: int = 300
    """Items on which learning rates are selected."""
    humps: float = 0.0
    """Ability (logits) that each run of every arm lacks with probability one half: two groups of runs."""
    collapse: float = 0.0
    """Chance that a run of any arm but the reference collapses to a score near 0."""


@dataclass(frozen=True)
class Draw:
    """A batch of simulated tables."""

    solved: np.ndarray
    """(tables, arms, seeds, items) bool; arm 0 is the reference."""
    truth: np.ndarray
    """(tables, comparisons) true difference at the selected learning rates."""


class Simulator:
    """Draws tables of one scenario; the same scenario and seed give the same tables."""

    def __init__(self, scenario: Scenario, seed: int = 0):
        self.scenario = scenario
        self.generator = np.random.default_rng([seed, *scenario.name.encode()])
        arms = len(scenario.effects) + 1
        common = self.generator.normal(0, scenario.spread, scenario.items)
        self.items = common + self.generator.normal(0, scenario.interaction, (arms, scenario.items))
        self.validation = self.generator.normal(0, scenario.spread, scenario.validation)
        self.sd = self._logit_sd()
        targets = np.array([scenario.rate, *(scenario.rate + effect for effect in scenario.effects)])
        self.ability = np.array([self._solve(arm, target) for arm, target in enumerate(targets)])
        losses = scenario.curve * (np.arange(RATES) - RATES // 2) ** 2
        steps = np.arange(RATES)
        self.level = self.ability[:, None] - losses
        self.truth = np.array([[self._expected(arm, self.level[arm, step]) for step in steps] for arm in range(arms)])

    def draws(self, tables: int, batch: int = 40) -> Iterator[Draw]:
        """Yield `tables` tables in batches."""
        for start in range(0, tables, batch):
            yield self._draw(min(batch, tables - start))

    def _draw(self, tables: int) -> Draw:
        s, g = self.scenario, self.generator
        arms = len(self.ability)
        chosen = self._select(tables)
        row = np.arange(arms)
        level = self.level[row, chosen]
        u = self._seed_effects((tables, arms, s.seeds))
        if s.humps:
            u = u - s.humps * (g.random(u.shape) < 0.5)
        if s.collapse:
            lost = g.random(u.shape) < s.collapse
            lost[:, 0] = False
            u = np.where(lost, -30.0, u)
        logits = (level[..., None] + u)[..., None].astype(np.float32) - self.items[:, None, :].astype(np.float32)
        solved = g.random(logits.shape, dtype=np.float32) < expit(logits)
        expected = self.truth[row, chosen]
        expected[:, 1:] *= 1 - s.collapse  # a collapsed run scores 0
        return Draw(solved, expected[:, 1:] - expected[:, :1])

    def _select(self, tables: int) -> np.ndarray:
        """Select each arm's learning rate as a study does, on simulated validation runs."""
        shape = (tables, len(self.ability), RATES, TUNING_SEEDS)
        logits = self.level[:, :, None] + self._seed_effects(shape)
        # Score of a run: binomial around its expected score on the validation items.
        grid = np.linspace(logits.min(), logits.max(), 400)
        response = expit(grid[:, None] - self.validation).mean(axis=1)
        mean = np.interp(logits, grid, response)
        scores = self.generator.binomial(self.scenario.validation, mean) / self.scenario.validation
        return pick(scores, -mean)

    def _seed_effects(self, shape: tuple[int, ...]) -> np.ndarray:
        s, g = self.scenario, self.generator
        common = g.standard_normal((shape[0], *(1 for _ in shape[1:-1]), shape[-1]))
        return self.sd * (np.sqrt(s.shared) * common + np.sqrt(1 - s.shared) * g.standard_normal(shape))

    def _expected(self, arm: int, ability: float, sd: float | None = None) -> float:
        """Return the expected score over seeds on the test set."""
        sd = self.sd if sd is None else sd
        p = expit(ability + sd * _NODES[:, None] - self.items[arm])
        return float(_WEIGHTS @ p.mean(axis=1))

    def _solve(self, arm: int, target: float, sd: float | None = None) -> float:
        """Return the ability at which the expected score is `target`."""
        return float(brentq(lambda ability: self._expected(arm, ability, sd) - target, -30, 30, xtol=1e-10))

    def _logit_sd(self) -> float:
        """Return the sd in logits at which scores vary by `seed_sd` between seeds."""

        def shortfall(sd: float) -> float:
            ability = self._solve(0, self.scenario.rate, sd)
            scores = expit(ability + sd * _NODES[:, None] - self.items[0]).mean(axis=1)
            mean = _WEIGHTS @ scores
            return float(np.sqrt(_WEIGHTS @ (scores - mean) ** 2) - self.scenario.seed_sd)

        return float(brentq(shortfall, 1e-6, 5.0, xtol=1e-6))
