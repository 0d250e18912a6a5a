"""How often a procedure is wrong on simulated tables: the paired t of the tables, and other candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lorax.calibration.simulate import Draw, Scenario, Simulator
from lorax.stats import effects, power
from lorax.stats.rule import VERDICTS, Verdicts, decide

ALPHA = 0.05
_LARGE = 1e6
"""Degrees of freedom of a normal interval."""


def differences(draw: Draw) -> np.ndarray:
    """Return arm minus reference, (tables, comparisons, seeds, items)."""
    return draw.solved[:, 1:].astype(np.int8) - draw.solved[:, :1].astype(np.int8)


def paired(d: np.ndarray) -> effects.Effect:
    """Paired t over seeds, as the tables have it."""
    return effects.paired_t(d.mean(axis=-1), 1 / d.shape[-1])


def both_random(d: np.ndarray) -> effects.Effect:
    """Seeds and items both random, crossed."""
    return effects.crossed(d, 1 / d.shape[-1])


def clustered(d: np.ndarray) -> effects.Effect:
    """Normal interval over items, with scores averaged over seeds first, as evaluation papers have it."""
    by_item = d.mean(axis=-2)
    se = np.maximum(by_item.std(axis=-1, ddof=1), 1e-9) / np.sqrt(by_item.shape[-1])
    return effects.Effect(by_item.mean(axis=-1), se, np.full(se.shape, _LARGE))


def pooled_mcnemar(d: np.ndarray) -> effects.Effect:
    """McNemar in its normal form on the items of all seeds together."""
    count = d.shape[-1] * d.shape[-2]
    se = np.maximum(np.sqrt((d.astype(np.int64) ** 2).sum(axis=(-2, -1))), 1) / count
    return effects.Effect(d.mean(axis=(-2, -1)), se, np.full(se.shape, _LARGE))


CANDIDATES: dict[str, Callable[[np.ndarray], effects.Effect]] = {
    "paired_t": paired,
    "crossed": both_random,
    "item-clustered z": clustered,
    "pooled McNemar": pooled_mcnemar,
}


@dataclass(frozen=True)
class Measured:
    """What one candidate did over the simulated tables of one scenario."""

    scenario: Scenario
    candidate: str
    tables: int
    false_tables: float
    """Share of tables with any false verdict."""
    coverage: float
    """Share of single 95 % intervals that contain the true difference."""
    simultaneous: float
    """Share of tables whose K intervals at 1 - alpha / K all contain the true differences."""
    verdicts: dict[str, float]
    """Share of each verdict among all comparisons."""
    sd: float
    """Typical sd of per-seed differences, as tables print it (median over tables)."""

    @property
    def error(self) -> float:
        """Monte Carlo standard error of `false_tables` where its true value is 5 %."""
        return float(np.sqrt(ALPHA * (1 - ALPHA) / self.tables))


def false_verdicts(verdicts: Verdicts, truth: np.ndarray, margin: float) -> np.ndarray:
    """Return which verdicts are false: a difference that is none or has the other sign, a false "equivalent"."""
    better, worse, equal = (verdicts.code == VERDICTS.index(name) for name in ("better", "worse", "equivalent"))
    zero = 1e-9  # differences of solved abilities are exact to about 1e-10
    return (better & (truth <= zero)) | (worse & (truth >= -zero)) | (equal & (np.abs(truth) >= margin - zero))


def measure(
    scenario: Scenario, tables: int, seed: int = 0, candidates: tuple[str, ...] = ("paired_t",)
) -> list[Measured]:
    """Simulate tables of a scenario and count the errors of each candidate.

    Args:
        scenario: what is simulated.
        tables: how many.
        seed: of the simulation.
        candidates: names in `CANDIDATES`; all judge the same tables.
    """
    gathered: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in candidates}
    for draw in Simulator(scenario, seed).draws(tables):
        d = differences(draw)
        for name in candidates:
            effect = CANDIDATES[name](d)
            gathered[name].append((effect.estimate, effect.se, effect.df, draw.truth))
    out = []
    for name in candidates:
        estimate, se, df, truth = (np.concatenate(part) for part in zip(*gathered[name], strict=True))
        out.append(_measured(scenario, name, effects.Effect(estimate, se, df), truth))
    return out


def _measured(scenario: Scenario, name: str, effect: effects.Effect, truth: np.ndarray) -> Measured:
    verdicts = decide(effect, scenario.margin, ALPHA)
    k = truth.shape[-1]
    low, high = effect.interval(1 - ALPHA)
    wide_low, wide_high = effect.interval(1 - ALPHA / k)
    shares = {label: float(np.mean(verdicts.code == at)) for at, label in enumerate(VERDICTS)}
    df = np.minimum(effect.df, scenario.seeds - 1)
    return Measured(
        scenario=scenario,
        candidate=name,
        tables=len(truth),
        false_tables=float(false_verdicts(verdicts, truth, scenario.margin).any(axis=-1).mean()),
        coverage=float(((low <= truth) & (truth <= high)).mean()),
        simultaneous=float(((wide_low <= truth) & (truth <= wide_high)).all(axis=-1).mean()),
        verdicts=shares,
        sd=float(np.median(power.typical_sd(effect.se, scenario.seeds, df))),
    )


@dataclass(frozen=True)
class Promise:
    """How often an effect of the printed size is detected; the printed promise is 80 %."""

    scenario: Scenario
    mde: float
    power: float
    """Share of tables in which the one arm that is better by `mde` is called better."""


def promise(scenario: Scenario, tables: int, seed: int = 0) -> Promise | None:
    """Measure the power at the printed minimum detectable effect.

    The effect is computed as tables do, from simulated tables without differences; other tables then have
    one arm that is better by exactly this effect.

    Returns:
        None where the better arm would score above 99.5 %.
    """
    k = len(scenario.effects)
    equal = replace(scenario, effects=(0.0,) * k)
    sd = measure(equal, max(tables // 2, 50), seed)[0].sd
    mde = power.detectable(sd, scenario.seeds, ALPHA / k, scenario.margin)
    if scenario.rate + mde > 0.995:
        return None
    better = replace(scenario, effects=(mde,) + (0.0,) * (k - 1), name=scenario.name + "+mde")
    hits, count = 0, 0
    for draw in Simulator(better, seed + 1).draws(tables):
        verdicts = decide(paired(differences(draw)), scenario.margin, ALPHA)
        hits += int((verdicts.code[:, 0] == VERDICTS.index("better")).sum())
        count += len(verdicts.code)
    return Promise(scenario, mde, hits / count)


def bootstrap_coverage(scenario: Scenario, tables: int, seed: int = 0, draws: int = 400) -> dict[str, float]:
    """Return the coverage of 95 % percentile bootstraps: of seeds and items, and of seeds only."""
    hits = {"two-level bootstrap": 0, "seed bootstrap": 0}
    count = 0
    for draw in Simulator(scenario, seed).draws(tables):
        d = differences(draw)[:, 0].astype(float)
        for table, truth in zip(d, draw.truth[:, 0], strict=True):
            ends = {
                "two-level bootstrap": effects.bootstrap(table, 0.95, draws, seed=count),
                "seed bootstrap": effects.bootstrap(table.mean(axis=-1, keepdims=True), 0.95, draws, seed=count),
            }
            for name, (low, high) in ends.items():
                hits[name] += low <= truth <= high
            count += 1
    return {name: hit / count for name, hit in hits.items()}


def rules(tables: int, seed: int = 0, arms: int = 8, seeds: int = 6) -> dict[str, float]:
    """Return the share of false tables of two rules, in the family where they differ most.

    Gaussian differences of independent arms, margin 1: all arms but one are exactly at the margin with little
    noise, one has no difference and much noise. `stepped` is the rule of the tables; `plain` is Holm over the
    smaller of the two p-values of each comparison (difference, equivalence).
    """
    truth = np.array([1.0] * (arms - 1) + [0.0])
    sd = np.array([0.05] * (arms - 1) + [5.0])
    d = truth[:, None] + sd[:, None] * np.random.default_rng(seed).standard_normal((tables, arms, seeds))
    effect = effects.paired_t(d)
    stepped = false_verdicts(decide(effect, 1.0, ALPHA), truth, 1.0)
    zero, equal = effect.p_zero(), np.minimum(2 * effect.p_margin(1.0), 1.0)
    smaller = np.minimum(zero, equal)
    rank = smaller.argsort(axis=-1, kind="stable").argsort(axis=-1)
    decided = effects.holm(smaller) <= ALPHA
    inside = decided & (equal <= ALPHA / (arms - rank))
    plain = (inside & (truth >= 1)) | (decided & ~inside & (truth == 0))
    return {"stepped": float(stepped.any(axis=-1).mean()), "plain": float(plain.any(axis=-1).mean())}
