"""Pairing the runs of two arms by seed and by item, and the evidence between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from lorax.errors import UserError
from lorax.stats import effects, sign_flips
from lorax.stats.best_rate import BestRate, Window, compare
from lorax.stats.result import Final
from lorax.stats.selection import pick

BySeed = Mapping[int | None, Final]


@dataclass(frozen=True)
class Runs:
    """Final runs of one arm on one task: one rate, or every rate of its window."""

    rates: tuple[float | None, ...]
    """Rising; (None,) where the rate is taken as given."""
    by_rate: tuple[BySeed, ...]
    best: int
    """Place of the rate that validation picks."""

    @property
    def at_best(self) -> BySeed:
        """Seed -> run at the pick."""
        return self.by_rate[self.best]

    @property
    def seeds(self) -> list[int | None]:
        """Seeds that every rate has."""
        return [seed for seed in self.by_rate[0] if all(seed in runs for runs in self.by_rate)]

    @property
    def at_edge(self) -> bool:
        """Whether the pick is the lowest or highest of several rates."""
        return len(self.rates) > 1 and self.best in (0, len(self.rates) - 1)


Cells = dict[tuple[str, str], Runs]


def cells_of(finals: Sequence[Final], by_rate: bool = False) -> Cells:
    """Sort final runs by (arm, task), rate and seed.

    Args:
        finals: each (arm, task, seed) once; by rate, each (arm, task, rate, seed).
        by_rate: whether rates are told apart, and validation picks one; else the rate is taken as given.

    Raises:
        UserError: one of these occurs twice, or a run has no validation score to pick by.
    """
    sorted_runs: dict[tuple[str, str], dict[float | None, dict[int | None, Final]]] = {}
    for final in finals:
        rate = final.lr if by_rate else None
        runs = sorted_runs.setdefault((final.arm, final.task), {}).setdefault(rate, {})
        if final.seed in runs:
            at = "" if rate is None else f", rate {rate:g}"
            raise UserError(f"arm {final.arm!r}, task {final.task!r}{at}: seed {final.seed} occurs twice")
        runs[final.seed] = final
    return {key: _runs(rates) for key, rates in sorted_runs.items()}


def _runs(by_rate: Mapping[float | None, BySeed]) -> Runs:
    rates = sorted(by_rate, key=lambda rate: -math.inf if rate is None else rate)
    runs = Runs(tuple(rates), tuple(by_rate[rate] for rate in rates), 0)
    if len(rates) == 1:
        return runs
    rows = [[of_rate[seed] for seed in runs.seeds] for of_rate in runs.by_rate]
    if not runs.seeds:  # still incomplete: no seed has every rate, so nothing can be picked yet
        return replace(runs, best=len(rates) // 2)
    scores = [[_validation(run) for run in row] for row in rows]
    losses = [[run.validation_loss for run in row] for row in rows]
    return replace(runs, best=int(pick(scores, losses)))


def _validation(run: Final) -> float:
    if run.validation is None:
        where = f"arm {run.arm!r}, task {run.task!r}, seed {run.seed}"
        raise UserError(f"{where}: several rates were run, but no validation score says which is the best")
    return run.validation


@dataclass(frozen=True)
class Contrast:
    """Paired runs of two arms in one task and the evidence between them."""

    task: str
    first: str
    seeds: tuple[int, ...]
    at_best: tuple[tuple[Final, Final], ...]
    """The pairs of runs at both picks, one a seed."""
    effect: effects.Effect
    """At both picks."""
    evidence: BestRate
    n_items: int
    item_noise: float | None
    note: str
    below: effects.Array = field(default_factory=lambda: np.zeros((1, 0)))
    """(rates of the second, seeds) score differences of the first's pick and each of these."""
    above: effects.Array = field(default_factory=lambda: np.zeros((1, 0)))
    """(rates of the first, seeds) likewise, to the second's pick."""

    def p_flip(self) -> float:
        """Return the exact two-sided p of sign flips; 1 where a best lies at the edge, nan without pairs."""
        better, worse = (bool(np.isfinite(end.se).all()) for end in (self.evidence.below, self.evidence.above))
        return sign_flips.two_sided(self.below, self.above, better, worse)

    @property
    def differences(self) -> effects.Array:
        """Per-seed differences at both picks."""
        return np.array([x.score - y.score for x, y in self.at_best])


def contrast(cells: Cells, task: str, first: str, second: str, procedure: str) -> Contrast:
    """Pair the runs of `first` and `second` in one task by seed; the difference is first minus second.

    A run without a seed is paired with every seed of the other arm. Without a pair nothing is known:
    the effect has an infinite standard error.

    Args:
        cells: from `cells_of`.
        task: of both.
        first: label of an arm.
        second: label of another arm.
        procedure: paired_t | crossed.
    """
    a, b = cells.get((first, task)), cells.get((second, task))
    seeds = () if a is None or b is None else shared_seeds((a, b))
    if a is None or b is None or not seeds:
        nothing = effects.Effect(np.asarray(np.nan), np.asarray(np.inf), np.asarray(1.0))
        unknown = effects.Effect(np.zeros(1), np.full(1, np.inf), np.ones(1))
        evidence = BestRate(np.asarray(0.0), unknown, unknown)
        return Contrast(task, first, (), (), nothing, evidence, 0, None, "no pair of runs")
    firsts, seconds = grid(a, seeds), grid(b, seeds)
    pairs = list(zip(firsts[a.best], seconds[b.best], strict=True))
    n_items = min(run.n_items for row in firsts + seconds for run in row)
    resolution = 1 / n_items if n_items else 0.0
    items = _item_differences(pairs)
    d = np.array([x.score - y.score for x, y in pairs])
    notes = []
    if any(x.items and y.items and x.items.keys() != y.items.keys() for x, y in pairs):
        notes.append("not the same test items")
    if len(seeds) == 1:
        notes.append("one seed: no verdict possible")
    elif d.std(ddof=1) <= resolution:
        notes.append("no spread between seeds; one item's worth assumed")
    scored = _by_item(firsts, seconds) if procedure == "crossed" else None
    if scored is not None:
        measure = partial(effects.crossed, resolution=resolution)
        effect = measure(scored[0][a.best] - scored[1][b.best])
    else:
        measure = partial(effects.paired_t, resolution=resolution)
        scored = _scores(firsts), _scores(seconds)
        effect = measure(d)
        if procedure == "crossed":
            notes.append("items not kept: paired t instead of crossed")
    arm, reference = (
        Window(side, np.asarray(runs.best), np.asarray(runs.at_edge)) for side, runs in zip(scored, (a, b), strict=True)
    )
    return Contrast(
        task, first, seeds, tuple(pairs), effect, compare(arm, reference, measure), n_items, _item_noise(items),
        "; ".join(notes), _scores(firsts)[a.best] - _scores(seconds), _scores(firsts) - _scores(seconds)[b.best],
    )  # fmt: skip


def grid(runs: Runs, seeds: Sequence[int]) -> list[list[Final]]:
    """Return the runs, rates x seeds; a run without a seed stands for every seed."""
    return [[of_rate[seed] if seed in of_rate else of_rate[None] for seed in seeds] for of_rate in runs.by_rate]


def shared_seeds(sides: Sequence[Runs]) -> tuple[int, ...]:
    """Return the seeds that all of them have, rising; runs without a seed meet every one, and each other once."""
    numbered = [set(side.seeds) for side in sides if None not in side.seeds]
    if not numbered:
        return (0,) if sides else ()
    return tuple(sorted(seed for seed in set.intersection(*numbered) if seed is not None))


def _scores(runs: Sequence[Sequence[Final]]) -> effects.Array:
    return np.array([[run.score for run in row] for row in runs])


def _by_item(
    firsts: Sequence[Sequence[Final]], seconds: Sequence[Sequence[Final]]
) -> tuple[effects.Array, effects.Array] | None:
    """Return both sides' scores, rates x seeds x items, on the items that all runs share; None where not kept."""
    shared: set[str] | None = None
    for row in (*firsts, *seconds):
        for run in row:
            if run.items is None:
                return None
            shared = set(run.items) if shared is None else shared & set(run.items)
    if not shared:
        return None
    names = sorted(shared)
    first, second = (
        np.array([[[run.items[name] for name in names] for run in row if run.items] for row in side])
        for side in (firsts, seconds)
    )
    return first, second


def _item_differences(pairs: Sequence[tuple[Final, Final]]) -> effects.Array | None:
    """Return (seeds, items) differences on the items that all runs share; None where items were not kept."""
    items = [(x.items, y.items) for x, y in pairs if x.items is not None and y.items is not None]
    if len(items) < len(pairs):
        return None
    shared = sorted(set.intersection(*(set(side) for pair in items for side in pair)))
    return np.array([[x[name] - y[name] for name in shared] for x, y in items]) if shared else None


def _item_noise(items: effects.Array | None) -> float | None:
    """Sd that a per-seed difference would have if items flipped independently between seeds."""
    if items is None or len(items) < 2:
        return None
    return float(np.sqrt(items.var(axis=0, ddof=1).sum()) / items.shape[1])
