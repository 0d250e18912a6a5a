"""The comparison table of a sweep, from records alone: mean, SD and n over seeds, tasks as columns."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from lorax.errors import UserError
from lorax.records import RunRecord, Store, write_atomic
from lorax.records.fields import eta_of, learning_rate, one_per_seed, task
from lorax.records.grouping import Row, rows_of
from lorax.records.staleness import several_digests, shown
from lorax.reports.sweep_notes import notes
from lorax.reports.text.numbers import count, number, span
from lorax.reports.text.numbers import markdown as table_text

_BASE = Row("base", None, (), True)


def comparison(records: list[RunRecord]) -> pd.DataFrame:
    """Return one row per method, rank and swept setting, with the tasks as columns.

    Columns: `method`, `rank` (null where ignored), then per task `<task>_mean`, `<task>_sd` (over
    seeds, n - 1 below), `<task>_n`, `<task>_failed`, `<task>_diverged` (runs), then `eta`, `lr` (a
    number, or "low .. high"), `parameters` (trained, heads included), `step0_error` (the largest).

    Args:
        records: of any status; stale ones are left out (see `notes`), twins are one row.

    Returns:
        Scores as fractions; `attrs["notes"]` holds the lines that belong under the table.

    Raises:
        UserError: there is no record.
    """
    if not records:
        raise UserError("no records to tabulate")
    kept, only, stale, split = shown(records)
    rows, tasks = rows_of(kept), sorted({task(record) for record in kept})
    cells: dict[Row, dict[str, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in kept:
        cells[rows[record.run_id]][task(record)].append(record)
    cells = {row: {name: one_per_seed(found) for name, found in by.items()} for row, by in cells.items()}
    lines = [_line(row, cells[row], tasks, split) for row in cells]
    order = sorted(range(len(lines)), key=lambda i: list(cells)[i].key)
    lines = [lines[i] for i in order]
    if not any(row.frozen for row in cells):
        lines = [line for line in [_base_line(kept, tasks, split)] if line] + lines
    table = pd.DataFrame(lines)
    table["rank"] = table["rank"].astype("Int64")
    table.attrs.update(tasks=tasks, split=split, notes=notes(kept, only, stale, split) + _sizes(table, tasks))
    return table


def _sizes(table: pd.DataFrame, tasks: list[str]) -> list[str]:
    """Say what the number of seeds allows."""
    most = max(int(table[f"{name}_n"].max()) for name in tasks)
    if most < 2:
        return ["One seed a row: a difference may be the seed's. No test is made; `+study=<name>` tunes and tests."]
    return ["SDs describe; no test is made here. `+study=<name>` tunes every method alike and tests."]


def markdown(table: pd.DataFrame) -> str:
    """Return the table as Markdown: scores in per cent as `mean ± SD (n)`, notes below."""
    tasks = table.attrs["tasks"]
    head = ["method", "rank", *tasks, "eta", "lr", "trained", "step-0 error"]
    body = []
    for line in table.to_dict("records"):
        scores = [_score_text(line, name) for name in tasks]
        facts = [
            number(line["eta"]),
            number(line["lr"]),
            count(line["parameters"]),
            number(line["step0_error"], 1),
        ]
        body.append([line["method"], count(line["rank"]), *scores, *facts])
    parts = [table_text(head, body), *_pivots(table)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in table.attrs["notes"])]) + "\n"


def write_plain(store: Store, name: str) -> tuple[str, list[Path]]:
    """Build the comparison table of the records called `name` and write it, atomically.

    Where records hold diagnostics, their table and figures too.

    Returns:
        The Markdown text, and the paths written: the .md and .csv files first.

    Raises:
        UserError: there are no such records, or the folder cannot be written.
    """
    records = store.read(name)
    if not records:
        raise UserError(f"no records called {name!r} in {store.root}")
    table = comparison(records)
    text = f"# {name}\n\n{markdown(table)}"
    paths = [store.root / "tables" / f"{name}.{kind}" for kind in ("md", "csv")]
    if any(record.diagnostics for record in records):
        from lorax.reports.diagnostics import write_diagnostics

        more, others = write_diagnostics(store, name, records)
        text, paths = f"{text}\n{more}", paths + others
    write_atomic(paths[0], text)
    write_atomic(paths[1], table.to_csv(index=False, lineterminator="\n"))
    return text, paths


def _line(row: Row, cells: dict[str, list[RunRecord]], tasks: list[str], split: str) -> dict[str, Any]:
    records = [record for group in cells.values() for record in group]
    line: dict[str, Any] = {"method": row.label, "rank": row.rank}
    for name in tasks:
        found = [record for record in cells.get(name, []) if record.status != "failed"]
        scores = [value for value in (record.score(split) for record in found) if value is not None]
        line |= _summary(name, scores[:1] if row.frozen else scores)
        for status in ("failed", "diverged"):
            line[f"{name}_{status}"] = sum(record.status == status for record in cells.get(name, []))
    line["eta"] = span([value for record in records for value in eta_of(record)])
    line["lr"] = None if row.frozen else span([learning_rate(record) for record in records])
    counts = [record.costs.get("trainable") for record in records]
    line["parameters"] = span(counts, count)
    errors = [record.init_report.get("step0_error") for record in records]
    line["step0_error"] = max((value for value in errors if value is not None), default=None)
    return line


def _base_line(records: list[RunRecord], tasks: list[str], split: str) -> dict[str, Any] | None:
    """The untouched model's score, from the runs that measured it before training."""
    line: dict[str, Any] = {"method": _BASE.label, "rank": None}
    several = several_digests(records)  # then there is more than one base
    for name in tasks:
        here = [record for record in records if task(record) == name]
        mixed = any({("task", name), ("model", str(record.model.get("name")))} & several for record in here)
        mixed |= len({record.model.get("name") for record in here}) > 1
        found = [] if mixed else [record.score(f"base_{split}") for record in here]
        line |= _summary(name, [value for value in found if value is not None][:1])
        line |= {f"{name}_failed": 0, f"{name}_diverged": 0}
    if all(line[f"{name}_n"] == 0 for name in tasks):
        return None
    return line | {"eta": None, "lr": None, "parameters": 0, "step0_error": None}


def _summary(name: str, scores: list[float]) -> dict[str, Any]:
    return {
        f"{name}_mean": statistics.fmean(scores) if scores else None,
        f"{name}_sd": statistics.stdev(scores) if len(scores) > 1 else None,
        f"{name}_n": len(scores),
    }


def _score_text(line: dict[str, Any], name: str) -> str:
    mean, sd, n = (line[f"{name}_{key}"] for key in ("mean", "sd", "n"))
    trouble = [f"{line[f'{name}_{kind}']} {kind}" for kind in ("failed", "diverged") if line[f"{name}_{kind}"]]
    if not n:
        return ", ".join(trouble) or "-"
    spread = "" if sd is None or math.isnan(sd) else f" ± {100 * sd:.1f}"
    return f"{100 * mean:.1f}{spread} ({', '.join([str(int(n)), *trouble])})"


def _pivots(table: pd.DataFrame) -> list[str]:
    """Return, where more than one rank was run, one small table a task: methods down, ranks across."""
    ranks = sorted(table["rank"].dropna().unique())
    if len(ranks) < 2:
        return []
    parts = []
    for name in table.attrs["tasks"]:
        lines: dict[str, dict[int, str]] = {}
        for line in table[table["rank"].notna()].to_dict("records"):
            lines.setdefault(line["method"], {})[line["rank"]] = _score_text(line, name)
        body = [[label, *(found.get(rank, "-") for rank in ranks)] for label, found in lines.items()]
        parts.append(table_text([name, *(f"rank {rank}" for rank in ranks)], body))
    return parts
