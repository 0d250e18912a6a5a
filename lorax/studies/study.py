"""A study read back from its records: trials, choices, final runs, verdicts, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass

from lorax.records import RunRecord, Store
from lorax.stats.judge import Final, StudyResult, judge
from lorax.studies.job_index import Book
from lorax.studies.registration import fixed_at
from lorax.studies.rounds import Round, cost_jobs, next_round
from lorax.studies.spec import StudySpec
from lorax.studies.tuning import Choice, Trial, choose, search


@dataclass(frozen=True)
class Study:
    """What tables, figures and reports draw from. Keys are (task, arm label)."""

    spec: StudySpec
    choices: dict[tuple[str, str], Choice]
    """Learning rate, edge mark, points, trials, runners-up; only tasks whose tuning is complete."""
    trials: tuple[Trial, ...]
    """Every tuning run at full length."""
    screened: tuple[Trial, ...]
    """Every run of a halved tuning's screening; they chose what was tuned at full length."""
    finals: dict[tuple[str, str], dict[int | None, RunRecord]]
    """(task, arm) -> seed -> final record at the chosen rate; seed None for an arm that does not train."""
    runners_up: dict[tuple[str, str, float], dict[int, RunRecord]]
    """(task, arm, lr) -> seed -> record of the extra final runs. Description only."""
    costs: dict[tuple[str, str], RunRecord]
    """(task, arm) -> the solo, cold-cache run."""
    result: StudyResult | None
    """Verdicts and letters; None before the reference has a final run."""
    stale: dict[str, str]
    """run id -> why it was left out."""
    unasked: tuple[RunRecord, ...]
    """Records under the study's name that no job of the study asks for."""
    rest: Round
    """What is still to be run; kind `done` when nothing is."""
    fixed_at: str | None = None
    """When the design was fixed, ISO 8601; None where that was not written down."""

    @property
    def complete(self) -> bool:
        """Whether every round is done."""
        return self.rest.kind == "done"


def read_study(spec: StudySpec, store: Store, items: bool = True) -> Study:
    """Read a study's records and judge its final runs.

    Args:
        spec: the study, bound (as `plan.frozen` returns it).
        store: where the records are.
        items: whether to read the per-item scores (crossed procedure, item noise).
    """
    records = store.read(spec.name)
    book = Book(spec, records)
    choices: dict[tuple[str, str], Choice] = {}
    trials: list[Trial] = []
    screened: list[Trial] = []
    finals: dict[tuple[str, str], dict[int | None, RunRecord]] = {}
    extra: dict[tuple[str, str, float], dict[int, RunRecord]] = {}
    for task in spec.tasks:
        found = search(spec, book, task)
        trials += [trial for some in found.trials.values() for trial in some]
        screened += [trial for some in (found.screened or {}).values() for trial in some]
        if found.missing:
            continue
        for arm, choice in choose(spec, found, task).items():
            choices[task, arm] = choice
            finals[task, arm] = _finals(spec, book, choice)
            for lr in choice.runners_up[: spec.tuning.runners_up if spec.tuning else 0]:
                runs = {seed: book.find(arm, task, "final", lr, seed) for seed in spec.seeds}
                extra[task, arm, lr] = {seed: run for seed, run in runs.items() if run is not None}
    costs = {(job.task, job.arm): record for job in cost_jobs(spec) if (record := book.look(job)) is not None}
    return Study(
        spec=spec,
        choices=choices,
        trials=tuple(trials),
        screened=tuple(screened),
        finals=finals,
        runners_up=extra,
        costs=costs,
        result=_judged(spec, finals, store if items else None),
        stale=book.stale,
        unasked=tuple(book.unasked()),
        rest=next_round(spec, records),
        fixed_at=fixed_at(store.root, spec.name),
    )


def final_of(
    record: RunRecord, arm: str, task: str, seed: int | None, metric: str, store: Store | None = None
) -> Final:
    """Turn a final record into what the statistics take.

    A diverged run counts with the score of the diverged model if it was evaluated, else with the
    share of the majority class, else 0: it is a result, not a gap.
    """
    score = record.score("test", metric)
    items = None
    if store is not None and score is not None:
        rows = [row for row in store.items(record) if row.get("split") == "test" and row.get(metric) is not None]
        items = {str(row["id"]): float(row[metric]) for row in rows} or None
    if score is None:
        score = float(record.task.get("majority") or 0.0)
    n_items = record.score("test", "n") or record.task.get("n_test") or 0
    return Final(arm, task, seed, float(score), int(n_items), record.status == "diverged", items)


def _finals(spec: StudySpec, book: Book, choice: Choice) -> dict[int | None, RunRecord]:
    trained = spec.arm(choice.arm).trained
    runs: dict[int | None, RunRecord] = {}
    for seed in spec.seeds if trained else spec.seeds[:1]:
        record = book.find(choice.arm, choice.task, "final", choice.lr, seed)
        if record is not None:
            runs[seed if trained else None] = record
    return runs


def _judged(
    spec: StudySpec, finals: dict[tuple[str, str], dict[int | None, RunRecord]], store: Store | None
) -> StudyResult | None:
    if not any(arm == spec.reference and runs for (_, arm), runs in finals.items()):
        return None
    entries = [
        final_of(record, arm, task, seed, spec.metric, store)
        for (task, arm), runs in finals.items()
        for seed, record in runs.items()
    ]
    return judge(
        entries,
        reference=spec.reference,
        margin=spec.margin,
        alpha=spec.alpha,
        procedure=spec.procedure,
        metric=spec.metric,
        arms=spec.labels,
        tasks=spec.tasks,
    )
