"""How often seeds until decided are wrong: the looks of a study (`studies.looks`) on simulated runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorax.calibration.protocol import ROUNDS, selected
from lorax.calibration.worlds import Batch, World, draws
from lorax.stats.courses import verdicts
from lorax.studies.looks import Looked, Place, Scored, Series, replay

ALPHA, ITEMS, REFERENCE = 0.05, 500, "arm0"


@dataclass(frozen=True)
class Row:
    """What the looks of one world did."""

    world: str
    estimand: str
    tables: int
    false: float
    """Share of studies in which an arm of the reference's peak, or one that differs with the wrong sign, is ever called
    different."""
    false_lattice: float
    """The same against the best lattice points."""
    inside: float
    """Share of studies whose intervals at 1 - alpha / K all hold the difference of the best lattice points."""
    found: float | None
    """Share of differing arms called so, rightly; None where none differs."""
    median: float | None
    """Seeds at which half of the differing arms are; None where less than half are."""
    runs: float
    """Mean final runs an arm."""

    def plain(self) -> dict[str, Any]:
        """Return it as plain data, with the Monte Carlo errors of `false` and of `found`."""
        share = min(max(self.false, 1 / self.tables), 1 - 1 / self.tables)
        error = (share * (1 - share) / self.tables) ** 0.5
        return vars(self) | {"error": error}


def looked(batch: Batch, table: int, estimand: str = "method") -> Looked:
    """Judge one simulated study as a study with `seeds: until_decided` is judged.

    Args:
        batch: simulated studies.
        table: which of them.
        estimand: method | rate.
    """
    middle = selected(batch)[table]
    reach = 1 if estimand == "method" else 0
    arms = {("t", f"arm{at}"): at for at in range(len(middle))}

    def scores(place: Place, k: int, seed: int) -> Scored:
        at = arms[place], k, seed
        return Scored(float(batch.test[table][at]), ITEMS, float(batch.validation[table][at]))

    series = {place: Series(list(range(middle[at] - reach, middle[at] + reach + 1))) for place, at in arms.items()}
    return replay(series, REFERENCE, scores, most=batch.test.shape[-1], rounds=ROUNDS, alpha=ALPHA)


def measure(world: World, tables: int, seed: int = 0, estimand: str = "method") -> Row:
    """Count errors, what is found and after how many seeds.

    Args:
        world: with as many seeds as may be run.
        tables: how many.
        seed: of the simulation.
        estimand: method | rate.
    """
    counts: list[list[float]] = []
    right, after = [], []
    for batch in draws(world, tables, seed):
        for table in range(len(batch.peak)):
            study = looked(batch, table, estimand)
            courses = list(study.courses.values())
            found = verdicts(courses, ALPHA)
            sign = np.array([course.sign for course in courses])
            peak, lattice = (np.where(np.abs(x) > 1e-9, x, 0.0) for x in (batch.peak[table], batch.lattice[table]))
            runs = [len(of.points) * of.seeds for of in study.series.values()]
            wrong = [bool(((sign != 0) & (sign != np.sign(truth))).any()) for truth in (peak, lattice)]
            inside = bool(np.all((found.low <= lattice) & (lattice <= found.high)))
            counts.append([*wrong, inside, float(np.mean(runs))])
            apart = peak != 0
            right += list(sign[apart] == np.sign(peak[apart]))
            after += [course.seeds for course in np.array(courses, dtype=object)[apart]]
    mean = np.array(counts, dtype=float).mean(axis=0)
    stops = np.where(right, after, np.inf)
    half = float(np.median(stops)) if len(stops) else np.inf
    return Row(
        world.name, estimand, len(counts), float(mean[0]), float(mean[1]), float(mean[2]),
        float(np.mean(right)) if right else None, half if np.isfinite(half) else None, float(mean[3]),
    )  # fmt: skip


def rows(worlds: Sequence[tuple[World, str]], tables: int, seed: int = 0) -> list[dict[str, Any]]:
    """Measure worlds, each under its estimand, as plain data."""
    return [measure(world, tables, seed, estimand).plain() for world, estimand in worlds]
