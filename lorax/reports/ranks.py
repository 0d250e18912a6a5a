"""Scores by rank and ranks by layer as a part of a report, and a sweep's as files, from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lorax.records import RunRecord, Store, write_atomic
from lorax.records.grouping import rows_of
from lorax.reports.frames.ranks import by_rank, ranks_of_layers
from lorax.reports.text import numbers
from lorax.reports.text.cells import to_csv
from lorax.reports.text.document import Part, Table

NOTE = (
    "Per cent, mean ± SD over seeds (number of seeds). Rows `trained once` are one training, cut to each lower rank "
    "after it; the others were trained at each rank by themselves. trainings: a seed, for the ranks shown."
)


def part(frame: pd.DataFrame) -> Part | None:
    """Return one table per task, rows down, ranks across; None where no run was scored at several ranks.

    Args:
        frame: from `frames.ranks.by_rank`.
    """
    tables = []
    for name, of_task in frame.groupby("task", sort=False):
        ranks = sorted(of_task["rank"].unique())
        body = []
        for row, runs in of_task.groupby("row", sort=False):
            at = {rank: list(of_rank["score"]) for rank, of_rank in runs.groupby("rank")}
            trainings = 1 if runs["once"].iloc[0] else len(at)
            body.append([str(row), str(trainings), *(numbers.mean_sd(at.get(rank, [])) for rank in ranks)])
        tables.append(Table([str(name), "trainings", *(f"rank {rank}" for rank in ranks)], body))
    return Part("Score by rank", [NOTE], tables) if tables else None


def write_ranks(store: Store, name: str, records: Sequence[RunRecord], split: str) -> tuple[Part | None, list[Path]]:
    """Write tables/<name>.ranks.csv, figures/<name>/score_by_rank* and rank_by_layer*; nothing where there is none.

    Args:
        store: where to.
        name: of the sweep.
        records: those of its table.
        split: whose scores.

    Returns:
        The part of the report (None where no run was scored at several ranks), and the paths written.
    """
    frame, layers = by_rank(records, split), ranks_of_layers(_by_row(records))
    if frame.empty and layers.empty:
        return None, []
    from lorax.reports.figures.ranks import rank_by_layer, score_by_rank  # loads matplotlib: only where one is drawn
    from lorax.reports.figures.style import save

    paths, folder = [], store.root / "figures" / name
    if not frame.empty:
        paths.append(store.root / "tables" / f"{name}.ranks.csv")
        write_atomic(paths[0], to_csv(frame))
    for stem, figure in (("score_by_rank", score_by_rank(frame)), ("rank_by_layer", rank_by_layer(layers))):
        paths += [] if figure is None else save(figure, folder, stem)
    return part(frame), paths


def _by_row(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return row label, with the rank where there are several -> its runs, in the table's order."""
    rows = rows_of(list(records))
    ranks = {row.rank for row in rows.values() if row.rank is not None}
    by_row: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda record: rows[record.run_id].key):
        row = rows[record.run_id]
        rank = f" r={row.rank}" if len(ranks) > 1 and row.rank is not None else ""
        by_row.setdefault(row.label + rank, []).append(record)
    return by_row
