"""A study read back from its records: trials, choices, final runs, verdicts, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lorax.records import RunRecord, Store
from lorax.stats.courses import Course
from lorax.stats.judge import judge
from lorax.stats.result import Final, StudyResult
from lorax.stats.selection import Trial
from lorax.studies.jobs import Variation
from lorax.studies.looks import Place
from lorax.studies.registration import fixed_at
from lorax.studies.rounds import Progress, Round, progress
from lorax.studies.spec import StudySpec
from lorax.studies.tuning import Choice, as_trial
from lorax.studies.until_decided import tested

BySeed = dict[int | None, RunRecord]
"""Seed -> record; seed None for an arm that does not train."""
Finals = dict[tuple[str, str], BySeed]
"""(task, arm) -> final runs at the chosen rate; under estimand `method` at the rate that their validation picks."""
RunnersUp = dict[tuple[str, str, float], BySeed]
"""(task, arm, lr) -> final runs at a runner-up."""
Windows = dict[tuple[str, str], dict[float | None, BySeed]]
"""(task, arm) -> rate -> final runs, of every rate of the arm's window; rate None where it is taken as given."""


@dataclass(frozen=True)
class Study:
    """What tables, figures and reports are made from. Keys are (task, arm label)."""

    spec: StudySpec
    choices: dict[tuple[str, str], Choice]
    """Learning rate, edge mark, points, trials, runners-up; only tasks whose tuning is complete."""
    trials: tuple[Trial, ...]
    """Every tuning run at full length."""
    screened: tuple[Trial, ...]
    """Every screening run of a halved tuning; they chose what was tuned at full length."""
    finals: Finals
    runners_up: RunnersUp
    """Description only."""
    windows: Windows
    """Empty under estimand `rate`. The runs at the picks are those of `finals`."""
    costs: dict[tuple[str, str], RunRecord]
    """(task, arm) -> the cost run: alone on the machine, with a cold cache."""
    result: StudyResult | None
    """Verdicts and letters; None before the reference has a final run."""
    stale: dict[str, str]
    """run id -> why it was left out."""
    unasked: tuple[RunRecord, ...]
    """Records under the study's name that answer no job of the study."""
    remaining: Round
    """What is still to be run; kind `done` when nothing is."""
    damaged: dict[str, str] = field(default_factory=dict)
    """File name -> why it is left out: what lies among the records and is not believed."""
    varied: dict[tuple[str, str, Variation], BySeed] = field(default_factory=dict)
    """(task, arm, setting and value) -> runs around the design; description only."""
    fixed_at: str | None = None
    """When the design was fixed, ISO 8601; None where that was not written down."""

    @property
    def complete(self) -> bool:
        """Whether every round is done."""
        return self.remaining.kind == "done"


def read_study(spec: StudySpec, store: Store, items: bool = True) -> Study:
    """Read a study's records and judge its final runs.

    Args:
        spec: the study, bound (as `registration.frozen` returns it).
        store: where the records are.
        items: whether to read the scores of items (for the crossed procedure and `item_noise`).
    """
    reached = progress(spec, store.read(spec.name))
    finals, runners_up, windows = _final_runs(spec, reached)
    courses = reached.decided.courses if reached.decided else {} if spec.until_decided else None
    return Study(
        spec=spec,
        choices=reached.choices,
        trials=tuple(trial for tuned in reached.searches.values() for trial in tuned.full_length()),
        screened=tuple(trial for tuned in reached.searches.values() for trial in tuned.short()),
        finals=finals,
        runners_up=runners_up,
        windows=windows,
        costs={(job.task, job.arm): record for job, record in reached.costs if record is not None},
        result=_judged(spec, finals, windows, store if items else None, courses),
        stale=reached.stale,
        unasked=reached.unasked,
        damaged=store.left_out(spec.name),
        remaining=reached.next_round(),
        varied=_varied(reached),
        fixed_at=fixed_at(store.root, spec.name),
    )


def _varied(reached: Progress) -> dict[tuple[str, str, Variation], BySeed]:
    runs: dict[tuple[str, str, Variation], BySeed] = {}
    for vary, job, record in reached.varied:
        if record is not None:
            runs.setdefault((job.task, job.arm, vary), {})[job.seed] = record
    return runs


def final_of(
    record: RunRecord,
    arm: str,
    task: str,
    seed: int | None,
    metric: str,
    store: Store | None = None,
    lr: float | None = None,
) -> Final:
    """Turn a final record into the input of the statistics.

    A diverged run is a result: it counts with its score if it was evaluated, else with the share of
    the majority class, else with 0.

    Args:
        record: of the final run.
        arm: its label.
        task: its name.
        seed: None for an arm that does not train.
        metric: key of the record's scores.
        store: where its items are; None: without items.
        lr: its rate, where the arm ran several; its score on validation then counts too.
    """
    score = record.score("test", metric)
    items = None
    if store is not None and score is not None:
        rows = [row for row in store.items(record) if row.get("split") == "test" and row.get(metric) is not None]
        items = {str(row["id"]): float(row[metric]) for row in rows} or None
    n_items = record.score("test", "n") or record.task.get("n_test") or 0
    final = Final(
        arm, task, seed, tested(record, metric), int(n_items), record.status == "diverged", items,
        floor=float(record.task.get("majority") or 0.0),
    )  # fmt: skip
    if lr is None:
        return final
    trial = as_trial(record, arm, task, lr, seed or 0, metric)
    return replace(final, lr=lr, validation=trial.score, validation_loss=trial.loss)


def _final_runs(spec: StudySpec, reached: Progress) -> tuple[Finals, RunnersUp, Windows]:
    """Part the final runs into those at the chosen rate, those at runners-up, and those of whole windows."""
    finals: Finals = {key: {} for key in reached.choices}
    runners_up: RunnersUp = {}
    for job, record in reached.finals:
        key = job.task, job.arm
        if job.lr == reached.choices[key].lr:
            runs = finals[key]
        else:
            assert job.lr is not None  # only a tuned rate has runners-up
            runs = runners_up.setdefault((*key, job.lr), {})
        if record is not None:
            runs[job.seed if spec.arm(job.arm).trained else None] = record
    windows: Windows = {}
    for key, of_arm in reached.windows.items():
        rates = windows[key] = {lr: {} for lr in of_arm.rates}
        for job, record in of_arm.answers:
            if record is not None:
                rates[job.lr][job.seed] = record
        finals[key] = rates[reached.choices[key].lr]
    return finals, runners_up, windows


def _judged(
    spec: StudySpec, finals: Finals, windows: Windows, store: Store | None, courses: Mapping[Place, Course] | None
) -> StudyResult | None:
    runs_by_rate: Windows = {key: windows.get(key, {None: runs}) for key, runs in finals.items()}
    if not any(arm == spec.reference and any(rates.values()) for (_, arm), rates in runs_by_rate.items()):
        return None
    entries = [
        final_of(record, arm, task, seed, spec.metric, store, lr)
        for (task, arm), rates in runs_by_rate.items()
        for lr, runs in rates.items()
        for seed, record in runs.items()
    ]
    return judge(
        entries,
        reference=spec.reference,
        margin=spec.margin,
        alpha=spec.alpha,
        procedure=spec.procedure,
        estimand=spec.estimand,
        claim=spec.claim,
        metric=spec.metric,
        arms=spec.labels,
        tasks=spec.tasks,
        courses=courses,
        most=len(spec.seeds),
    )
