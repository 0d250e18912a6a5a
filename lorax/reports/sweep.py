"""The table of a sweep, from records alone: mean, SD and n over seeds, tasks as columns. Nothing is tested."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from lorax.errors import UserError
from lorax.records import RunRecord, Store, write_atomic
from lorax.records.fields import learning_rate, one_per_seed, parts, task
from lorax.records.grouping import Row, rows_of
from lorax.records.staleness import several_digests, shown
from lorax.reports import columns, diagnostics, ranks
from lorax.reports.columns import Column
from lorax.reports.sweep_notes import notes
from lorax.reports.text import markdown, numbers
from lorax.reports.text.cells import to_csv
from lorax.reports.text.document import Document, Part, Table


@dataclass(frozen=True)
class TaskScores:
    """What the runs of one row reached on one task."""

    scores: tuple[float, ...] = ()
    """One per seed, fractions."""
    failed: int = 0
    diverged: int = 0

    @property
    def mean(self) -> float | None:
        """Over seeds; None without a score."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def sd(self) -> float | None:
        """Over seeds, n - 1 below; None with fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def text(self) -> str:
        """Return `55.0 ± 7.1 (2, 1 failed)`: per cent, and the number of seeds."""
        trouble = [f"{n} {kind}" for n, kind in ((self.failed, "failed"), (self.diverged, "diverged")) if n]
        return numbers.mean_sd(self.scores, trouble)


@dataclass(frozen=True)
class SweepRow:
    """A method at one setting, over all tasks."""

    method: str
    """With the swept fields that set the row apart."""
    rank: int | None
    """None where the method ignores it."""
    scores: Mapping[str, TaskScores]
    """By task."""
    records: tuple[RunRecord, ...] = ()
    frozen: bool = False
    """Nothing was trained."""
    untouched: bool = False
    """The base model as the other rows' runs measured it before training: a row without runs of its own."""


@dataclass(frozen=True)
class Sweep:
    """What the table of a sweep says."""

    rows: list[SweepRow]
    tasks: list[str]
    notes: list[str]
    """Sentences below the table."""
    split: str = "test"
    """Whose scores it shows."""

    def frame(self) -> pd.DataFrame:
        """Return the numbers, one row per method, rank and swept setting, by the keys of `sweep_columns`.

        Means and SDs (over seeds, n - 1 below) are fractions, `<task>_failed` and `<task>_diverged` count runs;
        `rank` is null where the method ignores it; `eta`, `lr` and `parameters` are a number, or `low .. high`.
        """
        return columns.frame(sweep_columns(self.tasks), self.rows).astype({"rank": "Int64"})

    def document(self, name: str) -> Document:
        """Return the page: scores in per cent as `mean ± SD (n)`, ranks across where there are several, notes."""
        table = columns.table(sweep_columns(self.tasks), self.rows)
        return Document(name, [Part("", self.notes, [table, *self._by_rank()])])

    def _by_rank(self) -> list[Table]:
        """Return, where more than one rank was run, one small table per task: methods down, ranks across."""
        ranks = sorted({row.rank for row in self.rows if row.rank is not None})
        if len(ranks) < 2:
            return []
        tables = []
        for name in self.tasks:
            cells: dict[str, dict[int, str]] = defaultdict(dict)
            for row in self.rows:
                if row.rank is not None:
                    cells[row.method][row.rank] = row.scores[name].text()
            body = [[label, *(at.get(rank, numbers.NOTHING) for rank in ranks)] for label, at in cells.items()]
            tables.append(Table([name, *(f"rank {rank}" for rank in ranks)], body))
        return tables


def left_out(damaged: Mapping[str, str]) -> list[str]:
    """Return a line for each file among the records that is not believed, the first five."""
    lines = [f"Not believed, left out: {file}: {reason}." for file, reason in sorted(damaged.items())[:5]]
    return lines + ([f"... and {len(damaged) - 5} more files."] if len(damaged) > 5 else [])


def sweep_columns(tasks: Sequence[str]) -> list[Column[SweepRow]]:
    """Return the columns of a sweep's table."""
    return [
        Column("method", "method", lambda row: row.method),
        Column("rank", "rank", lambda row: row.rank, numbers.count),
        *(column for name in tasks for column in _task_columns(name)),
        columns.ETA,
        Column("lr", "lr", _rates, numbers.number),
        Column("parameters", "trained", _trained, numbers.count),
        columns.LIVE,
        *columns.EVERYWHERE,
    ]


def _task_columns(name: str) -> list[Column[SweepRow]]:
    return [
        Column(f"{name}_mean", "", lambda row: row.scores[name].mean),
        Column(f"{name}_sd", "", lambda row: row.scores[name].sd),
        Column(f"{name}_n", "", lambda row: len(row.scores[name].scores)),
        Column(f"{name}_failed", "", lambda row: row.scores[name].failed),
        Column(f"{name}_diverged", "", lambda row: row.scores[name].diverged),
        Column("", name, lambda row: row.scores[name], TaskScores.text),
    ]


def _trained(row: SweepRow) -> numbers.Value:
    return 0 if row.untouched else columns.TRAINED.value(row)


def _rates(row: SweepRow) -> numbers.Value:
    return None if row.frozen else numbers.span([learning_rate(record) for record in row.records])


def read_sweep(records: list[RunRecord]) -> Sweep:
    """Return the rows of a sweep in order: the base, then by method, rank and swept fields.

    Args:
        records: of any status; stale ones are left out (see `notes`). Runs that differ only in what
            their method ignores are one row.

    Raises:
        UserError: there is no record.
    """
    if not records:
        raise UserError("no records to tabulate")
    kept, only_validation, stale, split = shown(records)
    row_of, places = rows_of(kept), places_of(kept)
    runs: dict[Row, dict[str, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in kept:
        runs[row_of[record.run_id]][task(record)].append(record)
    rows = [_row(row, runs[row], places, split) for row in sorted(runs, key=lambda row: row.key)]
    if not any(row.frozen for row in rows):
        rows = [*_untouched(kept, places, split), *rows]
    said = [*notes(kept, only_validation, stale, split), _allowed_by_seeds(rows)]
    return Sweep(rows, [place.column for place in places], said, split)


@dataclass(frozen=True)
class Place:
    """Where a column's scores stand in records."""

    column: str
    """The column's name."""
    task: str
    part: str | None = None
    """One of the tasks of a group, which is `task`; None: the run's own score."""


def places_of(records: Sequence[RunRecord]) -> list[Place]:
    """Return the columns of scores: tasks by name, after a group of tasks each of its own."""
    members: dict[str, list[str]] = {}
    for record in sorted(records, key=task):
        own = members.setdefault(task(record), [])
        own += [name for name in parts(record) if name not in own]
    places: list[Place] = []
    for name, own in members.items():
        places.append(Place(name, name))
        for part in own:
            taken = part in members or any(place.column == part for place in places)
            places.append(Place(f"{name}: {part}" if taken else part, name, part))
    return places


def _row(row: Row, runs: Mapping[str, list[RunRecord]], places: Sequence[Place], split: str) -> SweepRow:
    kept = {place.task: one_per_seed(runs.get(place.task, ())) for place in places}
    scores = {place.column: _scores(kept[place.task], split, row.frozen, place.part) for place in places}
    records = tuple(record for name in runs for record in kept[name])
    return SweepRow(row.label, row.rank, scores, records, row.frozen)


def _scores(records: Sequence[RunRecord], split: str, frozen: bool, part: str | None) -> TaskScores:
    """Return the scores of one row's runs on one task; all seeds of a frozen base are one run."""
    all_scores = [record.score(split, part=part) for record in records if record.status != "failed"]
    known = [score for score in all_scores if score is not None]
    status = [record.status for record in records]
    return TaskScores(tuple(known[:1] if frozen else known), status.count("failed"), status.count("diverged"))


def _untouched(records: Sequence[RunRecord], places: Sequence[Place], split: str) -> list[SweepRow]:
    """Return the row of the untouched model, from the runs that measured it before training; none where none did.

    A task whose runs have several bases (models or data differ) has no such score.
    """
    several, scores = several_digests(records), {}
    for place in places:
        name = place.task
        of_task = [record for record in records if task(record) == name]
        models = {str(record.model.get("name")) for record in of_task}
        mixed = len(models) > 1 or ("task", name) in several or any(("model", model) in several for model in models)
        measured_before = [record.score(f"base_{split}", part=place.part) for record in of_task]
        known = [score for score in measured_before if score is not None]
        scores[place.column] = TaskScores(() if mixed else tuple(known[:1]))
    measured = any(on_task.scores for on_task in scores.values())
    return [SweepRow("base", None, scores, frozen=True, untouched=True)] if measured else []


def _allowed_by_seeds(rows: Sequence[SweepRow]) -> str:
    """Say what the number of seeds allows."""
    if max(len(on_task.scores) for row in rows for on_task in row.scores.values()) < 2:
        return "One seed a row: a difference may be the seed's. No test is made; `+study=<name>` tunes and tests."
    return "SDs describe; no test is made here. `+study=<name>` tunes every method alike and tests."


def write_sweep(store: Store, name: str) -> tuple[str, list[Path]]:
    """Build the table of the records called `name` and write it.

    Where records hold diagnostics, scores at several ranks or ranks by layer, their tables and figures too.

    Returns:
        The Markdown text, and the paths written: the .md and .csv files first.

    Raises:
        UserError: there are no such records, or the folder cannot be written.
    """
    records = store.read(name)
    if not records:
        raise UserError(f"no records called {name!r} in {store.root}")
    sweep = read_sweep(records)
    document = sweep.document(name)
    if damaged := store.left_out(name):
        document = replace(document, parts=[*document.parts, Part("Left out", left_out(damaged))])
    part, more = diagnostics.write_diagnostics(store, name, records)
    if part is not None:
        document = replace(document, parts=[*document.parts, part])
    in_table = [record for row in sweep.rows for record in row.records]
    by_rank, others = ranks.write_ranks(store, name, in_table, sweep.split)
    if by_rank is not None:
        document = replace(document, parts=[*document.parts, by_rank])
    text = markdown.render(document, table_title="{}")
    paths = [store.root / "tables" / f"{name}.{kind}" for kind in ("md", "csv")]
    write_atomic(paths[0], text)
    write_atomic(paths[1], to_csv(sweep.frame()))
    return text, paths + more + others
