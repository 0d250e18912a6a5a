"""The window of rates that every final seed of an arm runs (estimand `method`), and the rate that validation picks.

    first    the rate that tuning chose and its neighbour on either side
    widen    while the best on validation is at an end of the window: the next rate beyond it, on every seed,
             `tuning.rounds` times at most

The final runs are scored on validation and on test; validation alone decides on the window and the pick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorax.records import RunRecord
from lorax.stats.selection import Trial
from lorax.studies.job_index import JobIndex
from lorax.studies.jobs import Job, make_job
from lorax.studies.spec import StudySpec
from lorax.studies.tuning import Choice, as_trial, ranked, rate

FIRST = 3
"""Rates of a window before it is widened."""


@dataclass(frozen=True)
class Window:
    """One arm on one task: its rates so far and their final runs."""

    rates: tuple[float, ...]
    """Rising."""
    answers: tuple[tuple[Job, RunRecord | None], ...]
    """The job of every rate and seed, with its record or None."""
    best: float | None
    """The rate with the best mean on validation; None while runs are missing."""

    @property
    def missing(self) -> list[Job]:
        """Jobs without a record."""
        return [job for job, record in self.answers if record is None]

    @property
    def records(self) -> list[RunRecord]:
        """The records that are there."""
        return [record for _, record in self.answers if record is not None]

    @property
    def widened(self) -> bool:
        """Whether it has more rates than at first."""
        return len(self.rates) > FIRST

    @property
    def edge(self) -> str:
        """`low` or `high` where the best rate is at an end, else ""."""
        return {self.rates[0]: "low", self.rates[-1]: "high"}.get(self.best or math.nan, "")


def fewest_rates(spec: StudySpec) -> int:
    """Return the rates from the start of the arm that has the fewest."""
    return FIRST if spec.estimand == "method" and all(arm.trained for arm in spec.arms) else 1


def window(spec: StudySpec, index: JobIndex, choice: Choice) -> Window:
    """Repeat the widening of one arm's window on its records, up to the first round with missing runs.

    Args:
        spec: the study; it is tuned.
        index: its records.
        choice: of the tuning, for an arm that trains.
    """
    assert spec.tuning is not None and choice.lr is not None  # `parse` and `choose` see to it
    per_decade = spec.tuning.per_decade
    middle = round(per_decade * math.log10(choice.lr))
    ks = list(range(middle - FIRST // 2, middle + FIRST // 2 + 1))
    answers: dict[int, list[tuple[Job, RunRecord | None]]] = {}
    for extension in range(spec.tuning.rounds + 1):
        for k in ks:
            if k not in answers:
                jobs = [
                    make_job(spec, choice.arm, choice.task, "final", rate(k, per_decade), seed) for seed in spec.seeds
                ]
                answers[k] = [(job, index.find(job)) for job in jobs]
        best = _best(spec, answers, ks)
        if best not in (ks[0], ks[-1]) or extension == spec.tuning.rounds:
            break
        ks = [ks[0] - 1, *ks] if best == ks[0] else [*ks, ks[-1] + 1]
    return Window(
        tuple(rate(k, per_decade) for k in ks),
        tuple(answer for k in ks for answer in answers[k]),
        None if best is None else rate(best, per_decade),
    )


def picked(choice: Choice, of_arm: Window) -> Choice:
    """Return the choice with the window, and with its best rate and edge once the window is complete."""
    choice = replace(choice, window=of_arm.rates, pilot=choice.lr, runners_up=())
    return choice if of_arm.best is None else replace(choice, lr=of_arm.best, edge=of_arm.edge)


def _best(spec: StudySpec, answers: dict[int, list[tuple[Job, RunRecord | None]]], ks: Sequence[int]) -> int | None:
    """Return the lattice point with the best mean on validation over all seeds; None where a run is missing."""
    assert spec.tuning is not None
    trials: list[Trial] = []
    for k in ks:
        for job, record in answers[k]:
            if record is None:
                return None
            lr = rate(k, spec.tuning.per_decade)
            trials.append(as_trial(record, job.arm, job.task, lr, job.seed, spec.metric))
    return ranked(ks, trials, spec.tuning.per_decade)[0]
