"""Diagnostics as a part of a report, and a sweep's as files, from records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lorax.records import RunRecord, Store, write_atomic
from lorax.reports.frames.diagnostics import diagnostics_frame, layer_frame, measured_runs, wide
from lorax.reports.text.cells import to_csv
from lorax.reports.text.document import Part, Table
from lorax.reports.text.numbers import number

COLUMNS = {
    "cosine_first": "first SGD step",
    "cosine_first_adam": "first Adam step",
    "reach": "best possible",
    "optimum_2r": "optimum 2r",
    "cosine_final": "final to full's",
    "cosine_final_gradient": "final to -G",
    "relative_norm": "size",
    "effective_rank": "eff. rank",
    "intruders": "intruders",
    "overlap_top": "top",
    "overlap_bottom": "bottom",
    "overlap_chance": "chance",
    "forgetting": "forgetting",
}
"""Headline numbers shown, with their heads; the .csv holds all."""
NOTES = (
    "Medians over layers (means for intruders), averaged over seeds. Cosines of the first step are to -G, the gradient "
    "of the untouched model on calibration data; `best possible` is the largest cosine that any small step of what "
    "trains could have, `optimum 2r` that of any update of rank 2r.",
    "`final to full's`: cosine of the final update to that of full fine-tuning; size: ||dW|| / ||W0||; eff. rank: "
    "exp of the entropy of dW's singular values; intruders: leading singular vectors of W' unlike any of W0's, a layer "
    "(arXiv:2410.21228); top, bottom: share of ||dW||^2 in W0's leading or last singular subspaces, the mean of rows "
    "and columns; chance: what a random update has there.",
)
FORGETTING = "forgetting: nats a token by which text outside the task is predicted worse."


def write_diagnostics(store: Store, name: str, records: Sequence[RunRecord]) -> tuple[Part | None, list[Path]]:
    """Write tables/<name>_diagnostics.csv and figures/<name>/diagnostics*; nothing where nothing was measured.

    Returns:
        The part of the report (None where nothing was measured), and the paths written.
    """
    runs = measured_runs(records)
    frame = diagnostics_frame(runs)
    if frame.empty:
        return None, []
    path = store.root / "tables" / f"{name}_diagnostics.csv"
    write_atomic(path, to_csv(wide(frame)))
    return part(frame, runs), [path, *_draw(frame, layer_frame(runs), list(runs), store.root / "figures" / name)]


def _draw(frame: pd.DataFrame, layer_values: pd.DataFrame, arms: Sequence[str], folder: Path) -> list[Path]:
    from lorax.reports.figures.diagnostics import diagnostics, layers  # loads matplotlib: only where something is drawn
    from lorax.reports.figures.style import save

    paths, tasks = [], list(dict.fromkeys(frame["task"]))
    for name in tasks:
        end = "" if len(tasks) == 1 else f"_{name}"
        drawn = {
            f"diagnostics{end}": diagnostics(frame[frame["task"] == name], arms),
            f"diagnostics_layers{end}": layers(layer_values[layer_values["task"] == name], arms),
        }
        for stem, figure in drawn.items():
            paths += [] if figure is None else save(figure, folder, stem)
    return paths


def part(frame: pd.DataFrame, runs: Mapping[str, Sequence[RunRecord]]) -> Part:
    """Return one table per task, and the sentences that say what its columns are.

    Args:
        frame: from `diagnostics_frame`.
        runs: arm -> its runs.
    """
    tables = []
    for name in dict.fromkeys(frame["task"]):
        of_task = frame[frame["task"] == name]
        quantities = [key for key in COLUMNS if (of_task["quantity"] == key).any()]
        means = of_task.groupby(["arm", "quantity"], sort=False)["value"].mean()
        body = [
            [arm, *(number(means.get((arm, key))) for key in quantities)]
            for arm in runs
            if (of_task["arm"] == arm).any()
        ]
        tables.append(Table(("method", *(COLUMNS[key] for key in quantities)), body, name))
    sources = sorted({_full_update(record) for records in runs.values() for record in records} - {""})
    forgetting = [FORGETTING] if (frame["quantity"] == "forgetting").any() else []
    lines = [*NOTES, *forgetting, *(f"Full fine-tuning's update is that of {source}." for source in sources)]
    return Part("Diagnostics", [*lines, *_without_full_update(runs)], tables)


def _without_full_update(runs: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """Name the arms that had no update of full fine-tuning to be compared with, where others had one."""
    full_runs = {
        source["run_id"]
        for records in runs.values()
        for record in records
        if (source := record.diagnostics.get("full_update_of"))
    }
    missing = [
        arm
        for arm, records in runs.items()
        if not any(record.run_id in full_runs for record in records)  # not full fine-tuning itself
        and any(not record.diagnostics.get("full_update_of") for record in records)
    ]
    if not full_runs or not missing:
        return []
    return [
        f"{', '.join(missing)}: full fine-tuning's update was not in the cache (`LORAX_CACHE`) when this ran; run "
        "`init=full` there first."
    ]


def _full_update(record: RunRecord) -> str:
    source = record.diagnostics.get("full_update_of")
    return f"run {source['run_id']} (seed {source['seed']}, lr {source['lr']})" if source else ""
