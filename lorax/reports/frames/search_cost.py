"""What the search of each arm cost: rates tried, runs and steps of every stage, and runs that no job asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from lorax.records import RunRecord
from lorax.reports.columns import Column
from lorax.reports.frames.measures import Measured
from lorax.reports.text import numbers
from lorax.studies.study import Study


@dataclass(frozen=True)
class SearchCost:
    """One arm on one task; a run that stands for two arms counts for both."""

    task: str
    arm: str
    rates: int
    """Different learning rates that were run at full length or in a screening."""
    screening: int
    tuning: int
    """Runs on the tuning seeds at full length."""
    final: int
    """Runs scored on test: every seed at every rate of the window, runners-up too."""
    steps: int
    """Of all these runs together."""
    other: int
    """Further records under the arm's label that no job of the study asked for."""


def search_costs(study: Study) -> list[SearchCost]:
    """Return the cost of each arm that trains, tasks and arms in the study's order."""
    found = []
    for task in study.spec.tasks:
        for arm in (arm.label for arm in study.spec.arms if arm.trained):
            screened, tuned = (
                {trial.record.run_id: trial for trial in trials if (trial.task, trial.arm) == (task, arm)}
                for trials in (study.screened, study.trials)
            )
            finals = _finals(study, task, arm)
            runs = {run.run_id: run for run in finals} | {
                run_id: trial.record for run_id, trial in (screened | tuned).items()
            }
            rates = {trial.lr for trial in (*screened.values(), *tuned.values())}
            found.append(SearchCost(
                task, arm, len(rates), len(screened), len(tuned),
                len({run.run_id for run in finals}), sum(len(run.curve) for run in runs.values()),
                sum(run.label == arm and run.task.get("name") == task for run in study.unasked),
            ))  # fmt: skip
    return found


def _finals(study: Study, task: str, arm: str) -> list[RunRecord]:
    places: list[Iterable[RunRecord]] = [by.values() for by in study.windows.get((task, arm), {}).values()]
    places += [study.finals.get((task, arm), {}).values()]
    places += [by.values() for (where, label, _), by in study.runners_up.items() if (where, label) == (task, arm)]
    return [run for place in places for run in place]


_HEADS = {
    "rates": "rates tried", "screening": "screening runs", "tuning": "tuning runs", "final": "runs scored on test",
    "steps": "steps in all", "other": "other records",
}  # fmt: skip


def columns(costs: Sequence[SearchCost]) -> list[Column[SearchCost]]:
    """Return the columns of the table; a stage that no arm went through is left out."""
    shown = [key for key in _HEADS if any(getattr(cost, key) for cost in costs)]
    arm: Column[SearchCost] = Column("", "arm", attrgetter("arm"))
    return [arm, *(Column("", _HEADS[key], attrgetter(key), numbers.count) for key in shown)]


def measured(costs: Iterable[SearchCost]) -> list[Measured]:
    """Return the costs as measures."""
    nothing = float("nan")
    return [
        Measured(cost.task, cost.arm, f"search_{key}", getattr(cost, key), nothing, nothing, nothing, "count")
        for cost in costs
        for key in _HEADS
    ]
