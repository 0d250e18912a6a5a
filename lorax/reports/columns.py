"""Columns: a column is one line, in one list, and every table is a list of columns over rows, in every format.

`frame` gives what the CSV file holds, `table` what Markdown, LaTeX and HTML show. The columns of a study's
table are in `main_table`, those of a sweep's table in `sweep`; the columns here belong to both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import pandas as pd

from lorax.records import RunRecord
from lorax.records.fields import eta_of, live
from lorax.reports.text import numbers
from lorax.reports.text.document import Table


class RowOfRuns(Protocol):
    """A row of any table: it stands for some runs."""

    @property
    def records(self) -> Sequence[RunRecord]:
        """The runs."""


Row = TypeVar("Row", contravariant=True)


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table."""

    key: str
    """Its name in the CSV file; empty: the CSV file does not have it."""
    head: str
    """Its title in Markdown, LaTeX and HTML; empty: only the CSV file has it."""
    value: Callable[[Row], Any]
    """Row -> the value; None where nothing was measured."""
    text: Callable[[Any], str] = str
    """The value -> the cell's text."""
    optional: bool = False
    """Whether the table does without it where no row has a value."""


def frame(columns: Iterable[Column[Row]], rows: Iterable[Row]) -> pd.DataFrame:
    """Return the values of all columns that have a key, one line for each row."""
    rows = list(rows)
    kept = [column for column in columns if column.key and _wanted(column, rows)]
    lines = [{column.key: column.value(row) for column in kept} for row in rows]
    return pd.DataFrame(lines, columns=[column.key for column in kept])


def table(columns: Iterable[Column[Row]], rows: Iterable[Row], title: str = "", footnotes: Sequence[str] = ()) -> Table:
    """Return the texts of all columns that have a head, one line for each row."""
    rows = list(rows)
    shown = [column for column in columns if column.head and _wanted(column, rows)]
    body = [[column.text(column.value(row)) for column in shown] for row in rows]
    return Table([column.head for column in shown], body, title, footnotes)


def _wanted(column: Column[Row], rows: Iterable[Row]) -> bool:
    return not column.optional or any(column.value(row) is not None for row in rows)


def _live(row: RowOfRuns) -> numbers.Value:
    return numbers.span([live(record) for record in row.records], numbers.count)


def _trained(row: RowOfRuns) -> numbers.Value:
    return numbers.span([record.costs.get("trainable") for record in row.records], numbers.count)


def _etas(row: RowOfRuns) -> numbers.Value:
    return numbers.span([eta for record in row.records for eta in eta_of(record)])


def _step0_error(row: RowOfRuns) -> float | None:
    errors = [record.init_report.get("step0_error") for record in row.records]
    return max((error for error in errors if error is not None), default=None)


TRAINED: Column[RowOfRuns] = Column("parameters", "trained", _trained, numbers.count)
"""Trained parameters, heads included: a number, or `low .. high`."""
LIVE: Column[RowOfRuns] = Column("live", "live", _live, numbers.count, optional=True)
"""Those of them that count in the end, where training masks some: a number, or `low .. high`."""
ETA: Column[RowOfRuns] = Column("eta", "eta", _etas, numbers.number)
"""The factor before B M A: a number, or `low .. high` over layers and runs."""
EVERYWHERE: list[Column[RowOfRuns]] = [
    Column("step0_error", "step-0 error", _step0_error, lambda error: numbers.number(error, 1)),
]
"""What every table, of a study or a sweep, ends with. `step0_error`: the largest over the runs."""
