"""What is told of an arm beside its verdict, a number with its interval a line: the source of tables, CSV and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from lorax.reports.frames.learning_rates import by_rate_and_seed
from lorax.stats.measures.improvement import improvement
from lorax.stats.measures.plateau import plateau
from lorax.stats.measures.share import recovered
from lorax.stats.result import ArmResult, StudyResult
from lorax.stats.selection import Trial
from lorax.studies.study import Study

DROP = 0.01
"""Rates at which an arm stays within this fraction of its best count for its robustness: one point."""
CONFIDENCE = 0.95
"""Of every interval here, one at a time: descriptions, not corrected for their number."""


@dataclass(frozen=True)
class Measured:
    """One number about one arm on one task."""

    task: str
    arm: str
    measure: str
    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE
    unit: str = ""
    note: str = ""
    """What the numbers alone do not say: an open end, runs that never got there."""


def frame(measured: Iterable[Measured]) -> pd.DataFrame:
    """Return the lines of the CSV file."""
    return pd.DataFrame([asdict(one) for one in measured], columns=list(Measured.__dataclass_fields__))


def improvements(result: StudyResult) -> list[Measured]:
    """Return how often a run of each arm beats one of the reference; see `stats.measures.improvement`."""
    lines = []
    for row in result.arms:
        reference = result.arm(row.task, result.reference)
        if reference is None or row.arm == result.reference:
            continue
        bounded = improvement(_scores(row), _scores(reference), CONFIDENCE, certain=(_fixed(row), _fixed(reference)))
        lines.append(Measured(row.task, row.arm, "improvement", *bounded, unit="probability"))
    return lines


def base_and_full(study: Study) -> tuple[str, str] | None:
    """Return the arm that trains nothing and the arm that trains every parameter, where the study has both."""
    base = next((arm.label for arm in study.spec.arms if not arm.trained), None)
    whole = (arm.label for arm in study.spec.arms if arm.trained and _trains_all(study, arm.label))
    full = next(whole, None)
    return None if base is None or full is None else (base, full)


def recovered_shares(study: Study) -> list[Measured]:
    """Return how much of the way from base to full each arm goes; see `stats.measures.share`."""
    ends, result = base_and_full(study), study.result
    if ends is None or result is None:
        return []
    lines = []
    for row in result.arms:
        base, full = (result.arm(row.task, end) for end in ends)
        if base is None or full is None or row.arm in ends:
            continue
        seeds = [seed for seed in row.scores if seed in full.scores and (seed in base.scores or _fixed(base))]
        if not seeds:
            continue
        mine, whole, frozen = ([of.scores.get(seed, of.mean) for seed in seeds] for of in (row, full, base))
        found = recovered(mine, whole, frozen, CONFIDENCE, 1 / row.n_items if row.n_items else 0.0)
        note = "" if found.bounded else "outside" if found.outside else "unbounded"
        lines.append(Measured(row.task, row.arm, "recovered_share", found.value, found.low, found.high,
                              unit="share", note=note))  # fmt: skip
    return lines


def plateaus(study: Study) -> list[Measured]:
    """Return over how many decades of rates each tuned arm stays within `DROP` of its best, on validation."""
    trials: dict[tuple[str, str], list[Trial]] = {}
    for trial in study.trials:
        trials.setdefault((trial.task, trial.arm), []).append(trial)
    lines = []
    for task in study.spec.tasks:
        for arm in study.spec.labels:
            runs = trials.get((task, arm), [])
            if len({trial.lr for trial in runs}) < 2:
                continue
            rates, scores, _ = by_rate_and_seed(runs)
            items = int(runs[0].record.score("validation", "n") or study.spec.validation_items)
            found = plateau(rates, scores, DROP, CONFIDENCE, 1 / items)
            lines.append(Measured(
                task, arm, "rate_decades", found.width, found.low, math.inf if found.high_at_edge else found.high,
                unit="decades", note="at least" if found.at_edge else "",
            ))  # fmt: skip
    return lines


def _scores(row: ArmResult) -> np.ndarray:
    return np.array(list(row.scores.values()))


def _fixed(row: ArmResult) -> bool:
    """Return whether the arm has no seed: its one score is no draw."""
    return None in row.scores


def _trains_all(study: Study, arm: str) -> bool:
    runs = [run for (_, label), by in study.finals.items() if label == arm for run in by.values()]
    counts = {(run.costs.get("trainable"), run.costs.get("total")) for run in runs}
    return bool(counts) and all(trainable and trainable == total for trainable, total in counts)
