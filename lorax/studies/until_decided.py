"""Seeds until decided, on records: the looks of `looks` with a study's jobs, and what is still to be run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lorax.records import RunRecord
from lorax.stats.courses import Course
from lorax.studies.job_index import JobIndex
from lorax.studies.jobs import Job, make_job
from lorax.studies.looks import Place, Scored, Series, replay
from lorax.studies.spec import StudySpec
from lorax.studies.tuning import Choice, as_trial, rate
from lorax.studies.windows import FIRST, Window


@dataclass(frozen=True)
class Decided:
    """How far a study with `seeds: until_decided` has come in its final runs."""

    windows: dict[Place, Window]
    """Empty under estimand `rate`."""
    finals: tuple[tuple[Job, RunRecord | None], ...]
    """Of arms without a window."""
    courses: dict[Place, Course]

    @property
    def missing(self) -> list[Job]:
        """Runs to be done before the next look, seed by seed."""
        answers = [*self.finals, *(answer for of_arm in self.windows.values() for answer in of_arm.answers)]
        return [job for job, record in answers if record is None]

    def notes(self) -> list[str]:
        """Return what a log shows after each look."""
        ended = [f"{task}: {arm} decided after {c.seeds} seeds" for (task, arm), c in self.courses.items() if c.sign]
        at = max((course.seeds for course in self.courses.values()), default=0)
        return [*ended, f"{len(ended)} of {len(self.courses)} comparisons decided after {at} seeds"] if at else []


def until_decided(spec: StudySpec, index: JobIndex, choices: Mapping[Place, Choice]) -> Decided:
    """Repeat the looks of a study on its records.

    Args:
        spec: the study; its seeds are until decided.
        index: its records.
        choices: of the tuning, of every arm on every task.
    """
    assert spec.tuning is not None or spec.estimand == "rate"  # `parse` sees to it
    windowed = {place for place, c in choices.items() if spec.estimand == "method" and spec.arm(c.arm).trained}
    series = {place: _start(spec, choice, place in windowed) for place, choice in choices.items()}
    jobs: dict[tuple[Place, int, int], tuple[Job, RunRecord | None]] = {}

    def answer(place: Place, k: int, at: int) -> tuple[Job, RunRecord | None]:
        key = place, k, at
        if key not in jobs:
            lr = rate(k, _per_decade(spec)) if place in windowed else choices[place].lr
            job = make_job(spec, place[1], place[0], "final", lr, spec.seeds[at])
            jobs[key] = job, index.find(job)
        return jobs[key]

    def scores(place: Place, k: int, at: int) -> Scored | None:
        job, record = answer(place, k, at)
        if record is None:
            return None
        n = int(record.score("test", "n") or record.task.get("n_test") or 0)
        if place not in windowed:
            return Scored(tested(record, spec.metric), n)
        trial = as_trial(record, job.arm, job.task, 0.0, job.seed, spec.metric)
        return Scored(tested(record, spec.metric), n, trial.score, trial.loss)

    rounds = spec.tuning.rounds if spec.tuning else 0
    found = replay(series, spec.reference, scores, most=len(spec.seeds), rounds=rounds, alpha=spec.alpha)
    answers = {
        place: tuple(
            answer(place, k, at) for k in of.points for at in range(of.seeds if of.seeded else min(of.seeds, 1))
        )
        for place, of in found.series.items()
    }
    windows = {place: _window(spec, found.series[place], answers[place]) for place in windowed}
    finals = (answers[place] for place in choices if place not in windowed)
    return Decided(
        {place: windows[place] for place in choices if place in windows},
        tuple(answer for of_arm in finals for answer in of_arm),
        found.courses,
    )


def tested(record: RunRecord, metric: str) -> float:
    """Return what a final run counts with on test: its score, else the share of the majority class, else 0."""
    score = record.score("test", metric)
    return float(record.task.get("majority") or 0.0) if score is None else float(score)


def _start(spec: StudySpec, choice: Choice, windowed: bool) -> Series:
    if not windowed or choice.lr is None:
        return Series([0], seeded=spec.arm(choice.arm).trained)
    middle = round(_per_decade(spec) * math.log10(choice.lr))
    return Series(list(range(middle - FIRST // 2, middle + FIRST // 2 + 1)))


def _window(spec: StudySpec, of: Series, answers: tuple[tuple[Job, RunRecord | None], ...]) -> Window:
    per_decade = _per_decade(spec)
    return Window(
        tuple(rate(k, per_decade) for k in of.points), answers, None if of.best is None else rate(of.best, per_decade)
    )


def _per_decade(spec: StudySpec) -> int:
    assert spec.tuning is not None
    return spec.tuning.per_decade
