"""The main table of a study: one row an arm and task, everything a reviewer asks for in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lorax.records import RunRecord
from lorax.records.fields import eta_of
from lorax.reports.frames.asymmetries import Asymmetry, footnotes, lint
from lorax.reports.text import numbers
from lorax.studies.study import Study

SCORE_HEAD = ("arm", "score [95 %]", "letters", "difference [interval]", "verdict", "seeds", "items")
SETTING_HEAD = ("arm", "lr", "trials", "trained", "eta", "init s", "step ms", "peak MB", "step-0 error")
_COST_COLUMNS = ("init_seconds", "step_ms", "peak_mb")


def main_table(study: Study) -> pd.DataFrame:
    """Return the numbers of the main table, one row a task and arm in the study's order.

    Columns: task, arm, mean, sd, low, high (fractions; t interval over seeds), letters, difference,
    difference_low, difference_high, confidence (of that interval), verdict, p_adjusted,
    p_equivalence_adjusted, seeds, items, diverged, lr, edge, points, trials, parameters, eta,
    init_seconds, step_ms, peak_mb (from the solo cost run), step0_error, notes (footnote numbers).

    Args:
        study: from `protocol_study.read_study`; may be incomplete, its gaps are null.
    """
    _, marks = footnotes(asymmetries(study), study.spec.reference)
    lines = [_line(study, task, arm, marks.get(arm, [])) for task in study.spec.tasks for arm in study.spec.labels]
    return pd.DataFrame(lines)


def asymmetries(study: Study) -> list[Asymmetry]:
    """Return what differs between arms besides the method and its tuned rate."""
    rows = {arm: _records(study, None, arm) for arm in study.spec.labels}
    trials = {}
    for (_, arm), choice in study.choices.items():
        if study.spec.arm(arm).trained and study.spec.tuning is not None:
            trials[arm] = max(choice.trials, trials.get(arm, 0))
    return lint({arm: records for arm, records in rows.items() if records}, trials)


def score_cells(table: pd.DataFrame, arms: Sequence[str], task: str) -> list[list[str]]:
    """Return the text of the left half, columns `SCORE_HEAD`, for some arms of one task."""
    return [
        [
            _marked(line),
            # Scores lie in 0..1; cutting a wider interval there loses no coverage.
            numbers.bounded(line["mean"], _cut(line["low"]), _cut(line["high"])) + _diverged(line),
            line["letters"] or numbers.NOTHING,
            numbers.bounded(line["difference"], line["difference_low"], line["difference_high"], signed=True),
            line["verdict"] or numbers.NOTHING,
            numbers.count(line["seeds"]),
            numbers.count(line["items"]),
        ]
        for line in _lines(table, arms, task)
    ]


def setting_cells(table: pd.DataFrame, arms: Sequence[str], task: str) -> list[list[str]]:
    """Return the text of the right half, columns `SETTING_HEAD`, for some arms of one task."""
    return [
        [
            _marked(line),
            numbers.rate(line["lr"]) + {"low": " ↓", "high": " ↑"}.get(line["edge"], ""),
            numbers.count(line["trials"]) if line["trials"] else numbers.NOTHING,
            numbers.count(line["parameters"]),
            numbers.number(line["eta"]),
            numbers.number(line["init_seconds"], 2),
            numbers.number(line["step_ms"], 3),
            numbers.count(line["peak_mb"]),
            numbers.number(line["step0_error"], 1),
        ]
        for line in _lines(table, arms, task)
    ]


def blocks(study: Study) -> dict[str, tuple[str, ...]]:
    """Return title -> arm labels; one untitled block unless the study has several."""
    return study.spec.blocks or {"": study.spec.labels}


def _line(study: Study, task: str, arm: str, marks: list[int]) -> dict[str, Any]:
    row = study.result.arm(task, arm) if study.result else None
    versus = study.result.comparison(task, arm) if study.result else None
    choice = study.choices.get((task, arm))
    records = _records(study, task, arm)
    cost = study.costs.get((task, arm))
    errors = [value for record in records if (value := record.init_report.get("step0_error")) is not None]
    reference = arm == study.spec.reference and row is not None
    line: dict[str, Any] = {
        "task": task, "arm": arm,
        "mean": row and row.mean, "sd": row and row.sd, "low": row and row.low, "high": row and row.high,
        "letters": row.letters if row else "",
        "difference": versus and versus.estimate,
        "difference_low": versus and versus.low, "difference_high": versus and versus.high,
        "confidence": versus and versus.confidence,
        "verdict": "reference" if reference else versus.verdict if versus and row else "",
        "p_adjusted": versus and versus.p_adjusted,
        "p_equivalence_adjusted": versus and versus.p_equivalence_adjusted,
        "seeds": row and row.n_seeds, "items": row and row.n_items, "diverged": row.diverged if row else 0,
        "lr": choice and choice.lr, "edge": choice.edge if choice else "",
        "points": choice.points if choice else 0, "trials": choice.trials if choice else 0,
        "parameters": numbers.span([record.costs.get("trainable") for record in records], numbers.count),
        "eta": numbers.span([value for record in records for value in eta_of(record)]),
        **{key: cost.costs.get(key) if cost else None for key in _COST_COLUMNS},
        "step0_error": max(errors, default=None),
        "notes": " ".join(map(str, marks)),
    }  # fmt: skip
    if versus is not None and row is None:
        line |= dict.fromkeys(("difference", "difference_low", "difference_high", "confidence"))
    return line


def _records(study: Study, task: str | None, arm: str) -> list[RunRecord]:
    return [
        record
        for (where, label), runs in study.finals.items()
        for record in runs.values()
        if label == arm and task in (None, where)
    ]


def _lines(table: pd.DataFrame, arms: Sequence[str], task: str) -> list[dict[str, Any]]:
    found = {line["arm"]: line for line in table[table["task"] == task].to_dict("records")}
    return [found[arm] for arm in arms if arm in found]


def _cut(bound: float | None) -> float | None:
    return bound if numbers.missing(bound) or math.isinf(bound) else min(max(bound, 0.0), 1.0)


def _marked(line: dict[str, Any]) -> str:
    return f"{line['arm']} ({line['notes'].replace(' ', ',')})" if line["notes"] else line["arm"]


def _diverged(line: dict[str, Any]) -> str:
    return f" ({line['diverged']} diverged)" if line["diverged"] else ""
