"""Diagnostics of a sweep as a table and figures, from its records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lorax.records import RunRecord, Store, write_atomic
from lorax.records.fields import one_per_seed
from lorax.records.grouping import rows_of
from lorax.records.staleness import shown
from lorax.reports.figures.diagnostics import diagnostics, diagnostics_frame, layer_frame, layers
from lorax.reports.figures.style import save
from lorax.reports.text import html
from lorax.reports.text.numbers import markdown, number

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
FORGOT = "forgetting: nats a token by which text outside the task is predicted worse."


def labelled(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return row label -> runs that were measured, in the order and by the names of the plain table.

    Runs that were looked at otherwise (`diagnostics_every`, ranks of methods that have none) are lines of their own.
    """
    kept = shown(records)[0]
    rows = rows_of(kept)
    kept = [record for record in kept if record.diagnostics]
    several = {row.rank for record in kept if (row := rows[record.run_id]).rank is not None}
    found: dict[str, list[RunRecord]] = {}
    for record in sorted(kept, key=lambda record: (rows[record.run_id].key, record.config.get("seed") or 0)):
        row = rows[record.run_id]
        rank = f" r={row.rank}" if len(several) > 1 and row.rank is not None else ""
        found.setdefault(row.label + rank, []).append(record)
    return {name: one_per_seed(runs) for label, all_ in found.items() for name, runs in _by_look(label, all_).items()}


def _by_look(label: str, runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Part a row's runs by how they were looked at, and name what differs."""
    looks = {run.run_id: _look(run) for run in runs}
    keys = {key for look in looks.values() for key in look}
    keys = sorted(key for key in keys if len({look.get(key) for look in looks.values()}) > 1)
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        words = [f"{key}={looks[run.run_id][key]}" for key in keys if key in looks[run.run_id]]
        found.setdefault(" ".join([label, *([f"({', '.join(words)})"] if words else [])]), []).append(run)
    return found


def _look(run: RunRecord) -> dict[str, str]:
    """Return what a run's diagnostics were made with: every how many layers, tokens, and what the id names beyond."""
    about = run.identity.get("diagnostics")
    if not isinstance(about, list):
        return {}
    named = dict(zip(("every", "tokens"), map(str, about), strict=False))
    return named | dict(word.split("=", 1) for word in about[2:])


def write_diagnostics(store: Store, name: str, records: Sequence[RunRecord]) -> tuple[str, list[Path]]:
    """Write tables/<name>_diagnostics.csv and figures/<name>/diagnostics*; nothing where nothing was measured.

    Returns:
        The Markdown section, and the paths written.
    """
    arms = labelled(records)
    frame = diagnostics_frame(arms)
    if frame.empty:
        return "", []
    paths = [store.root / "tables" / f"{name}_diagnostics.csv"]
    write_atomic(paths[0], wide(frame).to_csv(index=False, lineterminator="\n"))
    per_layer, tasks = layer_frame(arms), list(dict.fromkeys(frame["task"]))
    for one in tasks:
        end = "" if len(tasks) == 1 else f"_{one}"
        drawn = {
            f"diagnostics{end}": diagnostics(frame[frame["task"] == one], list(arms)),
            f"diagnostics_layers{end}": layers(per_layer[per_layer["task"] == one], list(arms)),
        }
        for stem, figure in drawn.items():
            paths += [] if figure is None else save(figure, store.root / "figures" / name, stem)
    return section(frame, arms), paths


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a run: arm, task, seed, then every quantity."""
    order = list(dict.fromkeys(frame["quantity"]))
    keys = ["arm", "task", "seed"]
    return frame.pivot_table(index=keys, columns="quantity", values="value", sort=False)[order].reset_index()


def part(frame: pd.DataFrame, arms: Mapping[str, Sequence[RunRecord]]) -> html.Part:
    """Return a table a task, and the lines that say what its columns are.

    Args:
        frame: from `diagnostics_frame`.
        arms: label -> runs.
    """
    tables = []
    for one in dict.fromkeys(frame["task"]):
        here = frame[frame["task"] == one]
        columns = [key for key in COLUMNS if (here["quantity"] == key).any()]
        means = here.groupby(["arm", "quantity"], sort=False)["value"].mean()
        body = [
            [arm, *(number(means.get((arm, key))) for key in columns)] for arm in arms if (here["arm"] == arm).any()
        ]
        tables.append(html.Table(("method", *(COLUMNS[key] for key in columns)), body, one))
    sources = sorted({_source(record) for runs in arms.values() for record in runs} - {""})
    forgot = [FORGOT] if (frame["quantity"] == "forgetting").any() else []
    lines = [*NOTES, *forgot, *(f"Full fine-tuning's update is that of {source}." for source in sources), *_alone(arms)]
    return html.Part("Diagnostics", lines, tables)


def _alone(arms: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """Name the arms that had no update of full fine-tuning to be compared with while others had one."""
    runs = [record for found in arms.values() for record in found]
    known = {source["run_id"] for record in runs if (source := record.diagnostics.get("full_update_of"))}
    missing = [
        arm
        for arm, found in arms.items()
        if not any(record.run_id in known for record in found)  # not full fine-tuning itself
        and any(not record.diagnostics.get("full_update_of") for record in found)
    ]
    if not known or not missing:
        return []
    return [
        f"{', '.join(missing)}: full fine-tuning's update was not in the cache (`LORAX_CACHE`) when this ran; run "
        "`init=full` there first."
    ]


def section(frame: pd.DataFrame, arms: Mapping[str, Sequence[RunRecord]]) -> str:
    """Return `part` as Markdown."""
    found = part(frame, arms)
    tables = [text for table in found.tables for text in (table.title, markdown(table.head, table.body))]
    return "\n\n".join([f"## {found.title}", *tables, "\n".join(f"- {line}" for line in found.lines)]) + "\n"


def _source(record: RunRecord) -> str:
    source = record.diagnostics.get("full_update_of")
    return f"run {source['run_id']} (seed {source['seed']}, lr {source['lr']})" if source else ""
