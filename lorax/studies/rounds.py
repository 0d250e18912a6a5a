"""The rounds of a study, computed from the spec and the records that are there, and from nothing else.

    cost     a short run of every arm, alone on the machine and with a cold cache: seconds and memory
    screen   optional successive halving: all learning rates, few steps
    tune     every arm: points x seeds learning rates around its centre, validation only
    extend   the same number of further points for every arm, where any arm's best is at its edge (screened, if it was)
    final    new seeds at the chosen rate, or at every rate of its window; the test split is scored once in a run
    widen    a further rate of a window on every seed, where an arm's best is at its edge (estimand `method`)
    vary     settings around the design, where the study asks for them (`sensitivity`); no verdict rests on them
    done

With `seeds: until_decided` there is a round of final runs after every look, one seed of the arms that are not decided
and of the reference, and none of `widen`: see `looks`.

A study that was killed and started again reads the same records and asks for the runs that are missing.
Diverged runs are results; failed ones are asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lorax.records import RunRecord
from lorax.studies.job_index import JobIndex
from lorax.studies.jobs import Job, Variation, make_job
from lorax.studies.spec import StudySpec
from lorax.studies.tuning import Choice, Search, choose, search
from lorax.studies.until_decided import Decided, until_decided
from lorax.studies.variations import vary_jobs
from lorax.studies.windows import Window, picked, window

STAGES = ("cost", "screen", "tune", "extend", "final", "widen", "vary")
Answers = tuple[tuple[Job, RunRecord | None], ...]
"""Jobs, each with the record that answers it, or None."""


@dataclass(frozen=True)
class Round:
    """Jobs that may run at the same time, in any order."""

    kind: str
    """cost | screen | tune | extend | final | widen | vary | done."""
    jobs: tuple[Job, ...] = ()
    notes: tuple[str, ...] = ()
    """What the log shows: stale records, rates at the edge of the grid."""

    @property
    def solo(self) -> bool:
        """Whether each job must have the machine to itself, because its seconds and memory are measured."""
        return self.kind == "cost"


@dataclass(frozen=True)
class Progress:
    """How far a study has come: its records are searched once, and all else is read from here."""

    costs: Answers
    """The cost run of every arm that trains, on every task."""
    searches: dict[str, Search]
    """Task -> its tuning."""
    choices: dict[tuple[str, str], Choice]
    """(task, arm) -> its learning rate; only tasks whose tuning is complete."""
    finals: Answers
    """Final runs at the chosen rates and, where asked for, at the runners-up; under estimand `method` of the arms
    without a rate only. Of the same tasks."""
    windows: dict[tuple[str, str], Window]
    """(task, arm) -> its window of rates and their final runs; empty under estimand `rate`."""
    stale: dict[str, str]
    """run id -> why it was left out."""
    unasked: tuple[RunRecord, ...]
    """Fresh records that answer no job."""
    decided: Decided | None = None
    """The looks so far, where seeds are until decided and all tuning is complete."""
    varied: tuple[tuple[Variation, Job, RunRecord | None], ...] = ()
    """Runs around the design; empty before all others are there."""

    def next_round(self) -> Round:
        """Return the missing jobs of the earliest unfinished stage."""
        missing: dict[str, list[Job]] = {stage: [] for stage in STAGES}
        missing["cost"] = [job for job, record in self.costs if record is None]
        for tuned in self.searches.values():
            missing[tuned.stage] += tuned.missing
        missing["final"] = [job for job, record in self.finals if record is None]
        for of_arm in self.windows.values():
            missing["widen" if of_arm.widened and self.decided is None else "final"] += of_arm.missing
        missing["vary"] = [job for _, job, record in self.varied if record is None]
        notes = [f"stale: {run_id} ({why})" for run_id, why in sorted(self.stale.items())]
        notes += [
            f"{c.task}: best lr of {c.arm} is at the {c.edge} edge, {c.lr:g}" for c in self.choices.values() if c.edge
        ]
        notes += self.decided.notes() if self.decided else []
        for stage in STAGES:
            if missing[stage]:
                return Round(stage, tuple(_once(missing[stage])), tuple(notes))
        return Round("done", (), tuple(notes))


def progress(spec: StudySpec, records: Iterable[RunRecord]) -> Progress:
    """Find how far a study has come.

    Args:
        spec: the study, bound (see `plan.bind`).
        records: all records of the study's name, in any order.
    """
    index = JobIndex(spec, records)
    costs = _answered(index, cost_jobs(spec))
    searches = {task: search(spec, index, task) for task in spec.tasks}
    choices = {
        (task, arm): choice
        for task, tuned in searches.items()
        if not tuned.missing
        for arm, choice in choose(spec, tuned, task).items()
    }
    decided = None
    if spec.until_decided is None:
        windows = {
            place: window(spec, index, choice)
            for place, choice in choices.items()
            if spec.estimand == "method" and spec.arm(choice.arm).trained
        }
        finals = _answered(index, final_jobs(spec, (c for place, c in choices.items() if place not in windows)))
    elif any(tuned.missing for tuned in searches.values()):
        windows, finals = {}, ()  # a look is about all tasks together, so that none begins before all are tuned
    else:
        decided = until_decided(spec, index, choices)
        windows, finals = decided.windows, decided.finals
    choices |= {place: picked(choices[place], of_arm) for place, of_arm in windows.items()}
    whole = len(choices) == len(spec.tasks) * len(spec.arms) and all(record for _, record in costs + finals)
    whole = whole and not any(of_arm.missing for of_arm in windows.values())
    varied = tuple((vary, job, index.find(job)) for vary, job in (vary_jobs(spec, choices.values()) if whole else ()))
    used = {record.run_id for _, record in costs + finals if record is not None}
    used |= {record.run_id for _, _, record in varied if record is not None}
    used |= {record.run_id for of_arm in windows.values() for record in of_arm.records}
    used |= {trial.record.run_id for tuned in searches.values() for trial in tuned.all_trials()}
    unasked = tuple(record for record in index.records if record.run_id not in used)
    return Progress(costs, searches, choices, finals, windows, index.stale, unasked, decided, varied)


def next_round(spec: StudySpec, records: Iterable[RunRecord]) -> Round:
    """Return what is to be run next: the missing jobs of the earliest unfinished stage.

    Args:
        spec: the study, bound (see `plan.bind`).
        records: all records of the study's name, in any order.
    """
    return progress(spec, records).next_round()


def cost_jobs(spec: StudySpec) -> list[Job]:
    """Return the cost run of every arm that trains, on every task, at its centre."""
    if spec.costs is None:
        return []
    return [
        make_job(
            spec,
            arm.label,
            task,
            "cost",
            spec.centre(arm.label, task) if spec.tuning else arm.lr,
            spec.costs.seed,
        )
        for task in spec.tasks
        for arm in spec.arms
        if arm.trained
    ]


def final_jobs(spec: StudySpec, choices: Iterable[Choice]) -> list[Job]:
    """Return the final runs of arms: every seed at the chosen rate, then at the runners-up if asked for."""
    jobs = []
    for choice in choices:
        seeds = spec.seeds if spec.arm(choice.arm).trained else spec.seeds[:1]
        extra = choice.runners_up[: spec.tuning.runners_up] if spec.tuning else ()
        for lr in (choice.lr, *extra):
            jobs += [make_job(spec, choice.arm, choice.task, "final", lr, seed) for seed in seeds]
    return jobs


def _answered(index: JobIndex, jobs: Iterable[Job]) -> Answers:
    return tuple((job, index.find(job)) for job in jobs)


def _once(jobs: Iterable[Job]) -> list[Job]:
    """Keep one of several jobs that are the same run under other labels."""
    seen: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        seen.setdefault(tuple(text for text in job.overrides if not text.startswith(("label=", "tag="))), job)
    return list(seen.values())
