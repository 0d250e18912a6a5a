"""The protocol of a study on arrays, as far as the pick of rates; verdicts come from the functions that tables call."""

from __future__ import annotations

from functools import partial

import numpy as np

from lorax.calibration.worlds import PILOT, RATES, Batch
from lorax.stats import effects, refusals
from lorax.stats.best_rate import BestRate, Window, compare
from lorax.stats.rule import VERDICTS, Verdicts, decide
from lorax.stats.selection import pick

ROUNDS = 2
"""By so many rates a window is widened at most, as in a study by default."""


def selected(batch: Batch) -> np.ndarray:
    """Return the lattice point that the pilot picks, (tables, arms + 1)."""
    trials = batch.pilot[:, :, PILOT]
    return pick(trials, np.zeros_like(trials)) + PILOT.start


def at_selected(batch: Batch) -> np.ndarray:
    """Return test scores at the selected rates, (tables, arms + 1, seeds)."""
    return np.take_along_axis(batch.test, selected(batch)[:, :, None, None], axis=2)[:, :, 0]


def window_rates(batch: Batch, rounds: int = ROUNDS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lowest, highest and best lattice point of every arm's window after widening, (tables, arms + 1).

    Args:
        batch: simulated studies.
        rounds: by so many rates a window is widened at most.
    """
    middle = selected(batch)
    low, high, mean = middle - 1, middle + 1, np.round(batch.validation.mean(axis=-1), 12)
    places = np.arange(RATES)
    best = middle
    for extension in range(rounds + 1):
        inside = (places >= low[..., None]) & (places <= high[..., None])
        best = np.where(inside, mean, -np.inf).argmax(axis=-1)
        if extension < rounds:
            low, high = np.where(best == low, low - 1, low), np.where(best == high, high + 1, high)
            low, high = np.maximum(low, 0), np.minimum(high, RATES - 1)
    return low, high, best


def windows(batch: Batch, rounds: int = ROUNDS) -> Window:
    """Return every arm's window after widening; the last rate of a smaller window is repeated."""
    low, high, best = window_rates(batch, rounds)
    rates = np.minimum(low[..., None] + np.arange(3 + rounds), high[..., None])
    test = np.take_along_axis(batch.test, rates[..., None], axis=2)
    return Window(test, best - low, (best == low) | (best == high))


def evidence(batch: Batch, estimand: str, items: int = 500) -> tuple[BestRate, np.ndarray]:
    """Return the evidence of every arm against the reference, and all arms' scores at the rate that the table shows.

    Args:
        batch: simulated studies.
        estimand: method | rate.
        items: one over it is the least spread assumed.
    """
    if estimand == "rate":
        scores = at_selected(batch)
        given = np.zeros(scores.shape[:2], dtype=int)
        every = Window(scores[:, :, None], given, given > 0)
    else:
        every = windows(batch)
        scores = every.at_best[:, :, 0]
    reference, arms = (
        Window(every.test[:, part], every.best[:, part], every.at_edge[:, part])
        for part in (slice(0, 1), slice(1, None))
    )
    return compare(arms, reference, partial(effects.paired_t, resolution=1 / items)), scores


def judged(
    batch: Batch, estimand: str, margin: float, alpha: float = 0.05, family: int | None = None, items: int = 500
) -> tuple[Verdicts, BestRate, np.ndarray]:
    """Return verdicts as tables have them (refused equivalences are undecided), their evidence, and the codes.

    Args:
        batch: simulated studies.
        estimand: method | rate.
        margin: of equivalence.
        alpha: of the family.
        family: comparisons planned; None: all that are there.
        items: of test.
    """
    found, scores = evidence(batch, estimand, items)
    verdicts = decide(found, margin, alpha, family)
    refuse = refusals.refused(scores[:, 1:], scores[:, :1], margin, 1 / items)
    code = np.where((verdicts.code == VERDICTS.index("equivalent")) & refuse, 0, verdicts.code)
    return verdicts, found, code
