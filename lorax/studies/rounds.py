"""The rounds of a study: a pure function of the spec and of the records that are there.

    cost     a short solo run of every arm with a cold cache: seconds and memory
    screen   optional successive halving: all learning rates, few steps
    tune     every arm: points x seeds learning rates around its own centre, validation only
    extend   the same number of further points for every arm, where any arm's best is at its edge (screened, if it was)
    final    fresh seeds at the chosen rate; the test split scored once a run
    done

Killed and started again it finds the same records and asks for the same rest. Diverged runs are
results; failed ones are asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lorax.records import RunRecord
from lorax.studies.job_index import Book
from lorax.studies.jobs import Job, make_job
from lorax.studies.spec import StudySpec
from lorax.studies.tuning import Choice, choose, search

STAGES = ("cost", "screen", "tune", "extend", "final")


@dataclass(frozen=True)
class Round:
    """Jobs that may run at once, in any order."""

    kind: str
    """cost | screen | tune | extend | final | done."""
    jobs: tuple[Job, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader of the log should know: stale records, edges."""

    @property
    def solo(self) -> bool:
        """Whether each job must have the machine to itself (its seconds and memory are the point)."""
        return self.kind == "cost"


def next_round(spec: StudySpec, records: Iterable[RunRecord]) -> Round:
    """Return what is to be run next.

    Args:
        spec: the study, bound (see `plan.bind`).
        records: all records of the study's name, in any order.

    Returns:
        Round: its jobs are exactly the missing ones of the earliest unfinished stage.
    """
    book = Book(spec, records)
    missing: dict[str, list[Job]] = {stage: [] for stage in STAGES}
    notes = [f"stale: {run_id} ({why})" for run_id, why in sorted(book.stale.items())]
    missing["cost"] = [job for job in cost_jobs(spec) if book.look(job) is None]
    for task in spec.tasks:
        found = search(spec, book, task)
        missing[found.stage] += found.missing
        if found.missing:
            continue
        choices = choose(spec, found, task)
        notes += [f"{task}: best lr of {c.arm} is at the {c.edge} edge, {c.lr:g}" for c in choices.values() if c.edge]
        missing["final"] += [job for job in final_jobs(spec, choices) if book.look(job) is None]
    for stage in STAGES:
        if missing[stage]:
            return Round(stage, tuple(_once(missing[stage])), tuple(notes))
    return Round("done", (), tuple(notes))


def cost_jobs(spec: StudySpec) -> list[Job]:
    """Return the solo, cold-cache run of every arm that trains, on every task, at its centre."""
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


def final_jobs(spec: StudySpec, choices: dict[str, Choice]) -> list[Job]:
    """Return the final runs of one task: every seed at the chosen rate, then runners-up if asked for."""
    jobs = []
    for choice in choices.values():
        seeds = spec.seeds if spec.arm(choice.arm).trained else spec.seeds[:1]
        extra = choice.runners_up[: spec.tuning.runners_up] if spec.tuning else ()
        for lr in (choice.lr, *extra):
            jobs += [make_job(spec, choice.arm, choice.task, "final", lr, seed) for seed in seeds]
    return jobs


def _once(jobs: Iterable[Job]) -> list[Job]:
    """Leave out jobs that differ only in how the tables call them."""
    seen: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        seen.setdefault(tuple(text for text in job.overrides if not text.startswith(("label=", "tag="))), job)
    return list(seen.values())
