"""Ranks as frames: what one training gives at each rank, and which rank each layer has in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from lorax.records import RunRecord
from lorax.records.fields import layer_ranks, lower_ranks, one_per_seed, task
from lorax.records.grouping import Row, rows_of

KEYS = ("task", "row", "once", "rank", "seed", "score", "loss")


def by_rank(records: Sequence[RunRecord], split: str = "test", metric: str = "score") -> pd.DataFrame:
    """Return one line per run and rank; none where no run was scored at ranks below its own.

    `once` is true of the lines of a run that was cut to several ranks after one training. Beside these stand the
    methods that were trained at two or more of the same ranks.

    Args:
        records: of a sweep or a study's final runs.
        split: whose scores.
        metric: score | tolerant.
    """
    scored = [record for record in records if record.status != "failed" and record.score(split, metric) is not None]
    row_of, runs = rows_of(scored), dict[Row, list[RunRecord]]()
    for record in scored:
        runs.setdefault(row_of[record.run_id], []).append(record)
    lines: list[tuple[object, ...]] = []
    for row in sorted(runs, key=lambda row: row.key):
        if row.rank is None or row.frozen:
            continue
        name = " ".join([row.method, *(f"{key}={value}" for key, value in row.fields)])
        for record in one_per_seed(runs[row]):
            lower = lower_ranks(record, split)
            about = (task(record), f"{name}, trained once at rank {row.rank}" if lower else name, bool(lower))
            for rank, entry in sorted(({row.rank: record.scores[split]} | lower).items()):
                lines.append((*about, rank, record.config.get("seed"), entry.get(metric), entry.get("loss")))
    frame = pd.DataFrame(lines, columns=KEYS)
    places = frame.loc[frame["once"].astype(bool), ["task", "rank"]].drop_duplicates()
    if not len(places):
        return frame.iloc[:0]
    beside = frame.merge(places, on=["task", "rank"])
    ranks = beside.groupby(["task", "row"])["rank"].transform("nunique")
    return beside[beside["once"].astype(bool) | (ranks > 1)].reset_index(drop=True)


def ranks_of_layers(runs: Mapping[str, Sequence[RunRecord]]) -> pd.DataFrame:
    """Return the mean rank over runs of each layer: arm, task, module, block, rank; none where ranks are alike.

    A layer named `model.layers.3.self_attn.q_proj` is the module `self_attn.q_proj` of block 3; one without a number
    in its name is in block 0.

    Args:
        runs: arm -> its runs.
    """
    lines = [
        (arm, task(record), *place(layer), rank)
        for arm, records in runs.items()
        for record in records
        for layer, rank in layer_ranks(record).items()
    ]
    keys = ["arm", "task", "module", "block"]
    frame = pd.DataFrame(lines, columns=[*keys, "rank"])
    return frame.groupby(keys, sort=False)[["rank"]].mean().reset_index()


def place(layer: str) -> tuple[str, int]:
    """Return the module and the block of a layer's name.

    Examples:
        >>> place("model.layers.3.self_attn.q_proj"), place("decoder.layers.0.fc1"), place("lm_head")
        (('self_attn.q_proj', 3), ('decoder fc1', 0), ('lm_head', 0))
    """
    parts = layer.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return layer, 0
    tower = next((part for part in parts[:at] if part in ("encoder", "decoder")), "")
    return " ".join(filter(None, (tower, ".".join(parts[at + 1 :])))) or "layer", int(parts[at])
