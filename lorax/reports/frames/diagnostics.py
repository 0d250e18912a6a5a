"""What training did to the weights, as frames: one row per run, measured number and, where it is kept, layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from lorax.records import RunRecord
from lorax.records.fields import one_per_seed, task
from lorax.records.grouping import rows_of
from lorax.records.staleness import shown

KEYS = ("arm", "task", "seed", "quantity", "value")


def diagnostics_frame(runs: Mapping[str, Sequence[RunRecord]]) -> pd.DataFrame:
    """Return one row per run and measured number: arm, task, seed, quantity, value.

    The record's headline numbers only (the median over layers); `layer_frame` has the numbers of each layer.

    Args:
        runs: arm -> its runs.
    """
    lines = [
        (arm, task(record), record.config.get("seed"), key, float(value))
        for arm, record in _arm_and_run(runs)
        for key, value in record.diagnostics.items()
        if _is_finite_number(value)
    ]
    return pd.DataFrame(lines, columns=KEYS)


def layer_frame(runs: Mapping[str, Sequence[RunRecord]]) -> pd.DataFrame:
    """Return one row per run, layer and measured number: as `diagnostics_frame`, with `layer`.

    Args:
        runs: arm -> its runs.
    """
    lines = []
    for arm, record in _arm_and_run(runs):
        measured = dict(record.diagnostics.get("layers") or {})
        names = measured.pop("names", [])
        about = (arm, task(record), record.config.get("seed"))
        lines += [
            (*about, key, float(value), layer)
            for key, values in measured.items()
            for layer, value in zip(names, values, strict=True)
            if _is_finite_number(value)
        ]
    return pd.DataFrame(lines, columns=[*KEYS, "layer"])


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run: arm, task, seed, then every quantity.

    Args:
        frame: from `diagnostics_frame`.
    """
    order = list(dict.fromkeys(frame["quantity"]))
    keys = ["arm", "task", "seed"]
    return frame.pivot_table(index=keys, columns="quantity", values="value", sort=False)[order].reset_index()


def common_median(frame: pd.DataFrame, quantity: str) -> float | None:
    """Return the median of a quantity if it is the same in every arm that has it, to one part in a thousand."""
    medians = frame[frame["quantity"] == quantity].groupby("arm")["value"].median()
    if medians.empty or not np.allclose(medians, medians.iloc[0], rtol=1e-3):
        return None
    return float(medians.iloc[0])


def measured_runs(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return row label -> runs that were measured, in the order and by the names of the sweep's table.

    Runs that were measured with other settings (`diagnostics_every`, ranks of methods that have none) are rows
    of their own.
    """
    kept = shown(records)[0]
    rows = rows_of(kept)
    kept = [record for record in kept if record.diagnostics]
    ranks = {row.rank for record in kept if (row := rows[record.run_id]).rank is not None}
    by_row: dict[str, list[RunRecord]] = {}
    for record in sorted(kept, key=lambda record: (rows[record.run_id].key, record.config.get("seed") or 0)):
        row = rows[record.run_id]
        rank = f" r={row.rank}" if len(ranks) > 1 and row.rank is not None else ""
        by_row.setdefault(row.label + rank, []).append(record)
    return {
        name: one_per_seed(runs)
        for label, of_row in by_row.items()
        for name, runs in _by_settings(label, of_row).items()
    }


def _by_settings(label: str, runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Part a row's runs by the settings they were measured with, and name the settings that differ."""
    settings = {run.run_id: _settings(run) for run in runs}
    keys = sorted({key for of_run in settings.values() for key in of_run})
    differing = [key for key in keys if len({of_run.get(key) for of_run in settings.values()}) > 1]
    parted: dict[str, list[RunRecord]] = {}
    for run in runs:
        words = [f"{key}={settings[run.run_id][key]}" for key in differing if key in settings[run.run_id]]
        parted.setdefault(" ".join([label, *([f"({', '.join(words)})"] if words else [])]), []).append(run)
    return parted


def _settings(run: RunRecord) -> dict[str, str]:
    """Return what a run was measured with: `every` (every n-th layer), `tokens`, and what else the id names."""
    about = run.identity.get("diagnostics")
    if not isinstance(about, list):
        return {}
    named = dict(zip(("every", "tokens"), map(str, about), strict=False))
    return named | dict(word.split("=", 1) for word in about[2:])


def _arm_and_run(runs: Mapping[str, Sequence[RunRecord]]) -> Iterator[tuple[str, RunRecord]]:
    return ((arm, record) for arm, records in runs.items() for record in records)


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
