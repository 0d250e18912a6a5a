"""Lines over alpha, zeta and gamma: the arms of a study that differ in one of these factors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lorax.records import RunRecord, canonical
from lorax.records.knobs import FACTORS
from lorax.records.staleness import variants

_ELSEWHERE = {"evaluate", "versions", "diagnostics"}
"""Fields of an identity that part no line."""
_NOT_FIXED = {"name", "version", "eta", "rank"}
"""Fields of an initialiser that a line names otherwise, or that follow from the rest."""


@dataclass(frozen=True)
class Line:
    """Arms of one method and rank that differ in one factor alone."""

    method: str
    factor: str
    rank: int
    fixed: str
    """Other fields that set it apart from its neighbours, such as `zeta=16`; empty if nothing does."""
    runs: pd.DataFrame
    """Columns value (of the factor), seed, score, cosine; one row per run."""

    def scores_at(self, value: float) -> list[float]:
        """Return the test scores of the runs at one value of the factor."""
        return self.runs.loc[self.runs["value"] == value, "score"].dropna().tolist()


@dataclass
class _Group:
    """Runs that may form a line."""

    method: str
    factor: str
    rank: int
    fields: Mapping[str, Any]
    """What else the runs have in common: other fields of the initialiser, of the task and of the model."""
    runs: list[dict[str, Any]] = field(default_factory=list)


def factor_lines(finals: Sequence[RunRecord], metric: str) -> list[Line]:
    """Return the lines that one task's final runs form, by method, factor and rank.

    Runs of a line differ in the factor and the seed alone, and in the learning rate if it follows the factor.
    Fields are read from the identity, where defaults are filled in.

    Args:
        finals: final records of one task.
        metric: `score` or `tolerant`.
    """
    groups: dict[tuple[str, str, str], _Group] = {}
    finals = list({record.run_id: record for record in finals}.values())  # two arms may share a run: one dot
    variant_fields = variants(finals)
    # Where runs differ in the rate alone, the rate was swept; else it follows the factor and is part of its effect.
    rate_swept = len({_rest(record, "lr") for record in finals}) < len({_rest(record) for record in finals})
    for record in finals:
        rest = _rest(record, "seed", "init", *(() if rate_swept else ("lr",)))
        init = record.identity.get("init") or {}
        for factor in FACTORS:
            if init.get(factor) is None or init.get("rank") is None:
                continue
            others = {key: value for key, value in init.items() if key not in {*_NOT_FIXED, factor}}
            place = (str(init["name"]), factor, canonical([init["rank"], others, rest]))
            fields = {**others, **variant_fields.get(record.run_id, {})}
            group = groups.setdefault(place, _Group(place[0], factor, int(init["rank"]), fields))
            group.runs.append({
                "value": float(init[factor]), "seed": record.config.get("seed"), "score": record.score("test", metric),
                "cosine": record.diagnostics.get("cosine_first"),
            })  # fmt: skip
    kept = [group for group in groups.values() if len({run["value"] for run in group.runs}) > 1]
    lines = [
        Line(group.method, group.factor, group.rank, _apart(group, kept),
             pd.DataFrame(group.runs).astype({"score": float, "cosine": float}))
        for group in kept
    ]  # fmt: skip
    return sorted(lines, key=lambda line: (line.method, -FACTORS.index(line.factor), line.rank, line.fixed))


def _rest(record: RunRecord, *without: str) -> str:
    """Return what a run consumed as text, without the fields named and those that never part a line."""
    return canonical({key: value for key, value in record.identity.items() if key not in {*_ELSEWHERE, *without}})


def _apart(group: _Group, groups: Sequence[_Group]) -> str:
    """Name the fields that set a line apart from others of the same method and factor, rank aside."""
    panel = [other.fields for other in groups if (other.method, other.factor) == (group.method, group.factor)]
    keys = (*FACTORS, *sorted({key for fields in panel for key in fields if key.startswith(("task.", "model."))}))
    differing = [key for key in keys if len({canonical(fields.get(key)) for fields in panel}) > 1]
    words = {key: group.fields[key] for key in differing if group.fields.get(key) is not None}
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in words.items()
    )
