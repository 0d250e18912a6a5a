"""Maps over rank, alpha, zeta and gamma: which arms of a study form a line, and their pivot tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lorax.records import RunRecord, canonical
from lorax.records.knobs import FACTORS
from lorax.records.staleness import variants
from lorax.reports.text import html, numbers

_ELSEWHERE = {"evaluate", "versions", "diagnostics"}
_NOT_FIXED = {"name", "version", "eta", "rank"}


@dataclass(frozen=True)
class Line:
    """Arms of one method and rank that differ in one factor alone."""

    method: str
    factor: str
    rank: int
    fixed: str
    """Other fields that set it apart from its neighbours, such as `zeta=16`; empty if nothing does."""
    runs: pd.DataFrame
    """Columns value (of the factor), seed, score, cosine; one row a run."""


def factor_lines(finals: Sequence[RunRecord], metric: str) -> list[Line]:
    """Return the lines that one task's final runs form, by method, factor and rank.

    Runs of a line differ in the factor and the seed alone (a rate that follows the factor aside).
    The fields are those that a run consumed, as its identity has them: defaults are filled in.

    Args:
        finals: final records of one task.
        metric: `score` or `tolerant`.
    """
    groups: dict[tuple[str, str, str], dict[str, list[dict[str, object]]]] = {}
    finals = list({record.run_id: record for record in finals}.values())  # twins share a run: one dot
    told = variants(finals)
    # A rate that follows the factor is part of what the factor does; where runs differ in it alone, it was set.
    set_apart = len({_rest(record, "lr") for record in finals}) < len({_rest(record) for record in finals})
    for record in finals:
        rest = _rest(record, "seed", "init", *(() if set_apart else ("lr",)))
        init = record.identity.get("init") or {}
        for factor in FACTORS:
            if init.get(factor) is None or init.get("rank") is None:
                continue
            others = {key: value for key, value in init.items() if key not in {*_NOT_FIXED, factor}}
            key = (str(init["name"]), factor, canonical([init["rank"], others, rest]))
            found = groups.setdefault(
                key, {"runs": [], "about": [{"rank": init["rank"], **others, **told.get(record.run_id, {})}]}
            )
            found["runs"].append({
                "value": float(init[factor]), "seed": record.config.get("seed"), "score": record.score("test", metric),
                "cosine": record.diagnostics.get("cosine_first"),
            })  # fmt: skip
    kept = [(*key[:2], entry) for key, entry in groups.items() if len({run["value"] for run in entry["runs"]}) > 1]
    lines = [
        Line(method, factor, int(entry["about"][0]["rank"]), _apart(method, factor, entry["about"][0], kept),
             pd.DataFrame(entry["runs"]).astype({"score": float, "cosine": float}))
        for method, factor, entry in kept
    ]  # fmt: skip
    return sorted(lines, key=lambda line: (line.method, -FACTORS.index(line.factor), line.rank, line.fixed))


def _rest(record: RunRecord, *without: str) -> str:
    """What a run consumed, but for the fields named and those in which arms of a line cannot differ."""
    return canonical({key: value for key, value in record.identity.items() if key not in {*_ELSEWHERE, *without}})


def _apart(method: str, factor: str, about: Mapping[str, object], kept: Sequence[tuple[str, str, dict]]) -> str:
    """Name the fields in which the lines of one panel differ, rank aside."""
    panel = [entry["about"][0] for other, x, entry in kept if (other, x) == (method, factor)]
    fields = (*FACTORS, *sorted({key for one in panel for key in one if key.startswith(("task.", "model."))}))
    keys = [key for key in fields if len({canonical(one.get(key)) for one in panel}) > 1]
    words = {key: about[key] for key in keys if about.get(key) is not None}
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in words.items()
    )


def pivots(lines: Mapping[str, Sequence[Line]]) -> list[html.Table]:
    """Return a table a task, method and factor: rank down, the factor's values across, mean ± SD over seeds.

    Args:
        lines: task -> its lines.
    """
    tables = []
    for task, found in lines.items():
        for method, factor in dict.fromkeys((line.method, line.factor) for line in found):
            panel = [line for line in found if (line.method, line.factor) == (method, factor)]
            values = sorted({value for line in panel for value in line.runs["value"]})
            body = [
                [f"r={line.rank}" + (f", {line.fixed}" if line.fixed else ""), *_cells(line, values)] for line in panel
            ]
            tables.append(html.Table((factor, *(f"{value:g}" for value in values)), body, f"{task}: {method}"))
    return tables


def _cells(line: Line, values: Sequence[float]) -> list[str]:
    cells = []
    for value in values:
        scores = line.runs.loc[line.runs["value"] == value, "score"].dropna()
        spread = f" ± {100 * scores.std():.1f}" if len(scores) > 1 else ""
        cells.append(f"{100 * scores.mean():.1f}{spread} ({len(scores)})" if len(scores) else numbers.NOTHING)
    return cells
