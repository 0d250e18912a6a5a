"""The part of a report about all tasks together: one row an arm, where a study has several tasks."""

from __future__ import annotations

import pandas as pd

from lorax.reports import columns
from lorax.reports.columns import Column
from lorax.reports.frames.measures import Measured
from lorax.reports.text import numbers, verdicts
from lorax.reports.text.document import Part
from lorax.stats.result import Across, StudyResult

ALL = "all tasks"
"""What stands in place of a task's name."""


def over_tasks_columns(result: StudyResult) -> list[Column[Across]]:
    """Return the columns of the table and of the frame."""

    def judged(row: Across) -> bool:
        return bool(row.verdict)

    return [
        Column("task", "", lambda row: ALL),
        Column("arm", "arm", lambda row: row.arm),
        Column("difference", "", lambda row: row.estimate),
        Column("difference_low", "", lambda row: row.low),
        Column("difference_high", "", lambda row: row.high),
        Column("confidence", "", lambda row: row.confidence),
        Column("", "difference [interval]", lambda row: _points(row.estimate, row.low, row.high)),
        Column("verdict", "", lambda row: row.verdict),
        Column("verdict_words", "verdict", lambda row: _verdict(row, result)),
        Column("p_adjusted", "", lambda row: row.p_adjusted),
        Column("refused", "", lambda row: row.refused),
        Column("here_low", "", lambda row: row.here_low),
        Column("here_high", "", lambda row: row.here_high),
        Column("", "these tasks alone", lambda row: _points(row.estimate, row.here_low, row.here_high)),
        Column("rank", "", lambda row: row.rank),
        Column("rank_low", "", lambda row: row.rank_low),
        Column("rank_high", "", lambda row: row.rank_high),
        Column("", "mean rank", lambda row: f"{row.rank:.1f} [{row.rank_low:.1f}, {row.rank_high:.1f}]"),
        Column("", "P(better run)", lambda row: _improvement(row) if judged(row) else numbers.NOTHING),
        Column("tasks", "tasks", lambda row: row.tasks, numbers.count),
        Column("seeds", "seeds", lambda row: row.seeds, numbers.count),
    ]


def frame(result: StudyResult) -> pd.DataFrame:
    """Return the rows over all tasks as numbers; none where a study has one task."""
    return columns.frame(over_tasks_columns(result), result.across)


def measured(result: StudyResult) -> list[Measured]:
    """Return the rows as measures: difference, rank and improvement."""
    level = 1 - result.alpha
    lines = []
    for row in result.across:
        lines.append(Measured(ALL, row.arm, "rank", row.rank, row.rank_low, row.rank_high, level, "rank"))
        if row.verdict:
            lines.append(Measured(ALL, row.arm, "difference", row.estimate, row.low, row.high, row.confidence,
                                  "fraction", row.verdict))  # fmt: skip
        if row.improvement:
            lines.append(Measured(ALL, row.arm, "improvement", *row.improvement, level, "probability"))
    return lines


def part(result: StudyResult) -> Part | None:
    """Return the table over all tasks with what it means, or None where a study has one task."""
    if not result.across:
        return None
    arms, tasks = len(result.across) - 1, result.across[0].tasks
    lines = [
        f"Differences from {result.reference} over {tasks} tasks of equal weight; tasks and seeds both count as drawn, "
        f"so that interval and verdict speak of tasks like these, corrected over {arms} rows at {100 * result.alpha:g} "
        "%, a family of its own beside the tables of single tasks. Scores of all tasks are taken in points of their "
        "own metric.",
        f"These tasks alone: seeds drawn, tasks fixed, at {100 * (1 - result.alpha):g} %, not corrected; no verdict "
        "rests on it. Mean rank: 1 is best, over tasks and seeds, with an interval of the same kind for an arm alone.",
    ]
    if tasks < 4:
        lines.append(f"{tasks} tasks say little about others: intervals are as wide as that leaves them.")
    lines += [f"{row.arm}: not decided: {row.refused}." for row in result.across if row.refused]
    return Part("Over all tasks", lines, [columns.table(over_tasks_columns(result), result.across)])


def _points(value: float, low: float, high: float) -> str:
    return numbers.bounded(value, low, high, signed=True)


def _verdict(row: Across, result: StudyResult) -> str:
    return verdicts.words(row, result.margin) or ("reference" if row.arm == result.reference else numbers.NOTHING)


def _improvement(row: Across) -> str:
    if row.improvement is None:
        return numbers.NOTHING
    share, low, high = row.improvement
    return f"{share:.2f} [{low:.2f}, {high:.2f}]"
