"""Which layers are measured, what kind each is, and the summary of numbers by layer."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorax.diagnostics.angles import Angle
from lorax.errors import UserError

Row = dict[str, float | None]
"""{metric: number} of one layer; None where the metric is not defined."""
LARGE_IS_WORST = frozenset({"relative_norm", "intruders", "overlap_top", "overlap_bottom"})
"""Metrics whose worst layer is the one with the largest value; for all others it has the smallest."""
COUNTED = frozenset({"intruders"})
"""Counts, mostly zero: their headline is the mean over layers, since the median would hide them."""
DIGITS = 6  # significant, of what records hold


def kind(name: str) -> str:
    """Return a layer's kind: its name after the last number, which is the number of its block.

    Examples:
        >>> kind("model.layers.3.self_attn.q_proj"), kind("encoder.layer.0.output.dense"), kind("body.2")
        ('self_attn.q_proj', 'output.dense', 'body')
    """
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    tail = parts[numbers[-1] + 1 :] if numbers else parts
    return ".".join(tail or [part for part in parts if not part.isdigit()]) or name


def sample(names: Iterable[str], every: int = 1) -> list[str]:
    """Return one layer in `every` of each kind, in order of depth, so that no kind is left out.

    Raises:
        UserError: `every` is below 1.

    Examples:
        >>> sample([f"h.{i}.{p}" for i in range(11) for p in "qv"], every=5)
        ['h.0.q', 'h.0.v', 'h.5.q', 'h.5.v', 'h.10.q', 'h.10.v']
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise UserError(f"diagnostics_every={every}: a whole number of at least 1 is needed")
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=_depth):
        groups.setdefault(kind(name), []).append(name)
    return sorted((name for group in groups.values() for name in group[::every]), key=_depth)


def summarise(
    names: Sequence[str], rows: Sequence[Row], angles: Mapping[str, Angle] | None = None
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Return numbers by layer as a record keeps them: the headlines, and the details.

    Args:
        names: the layers.
        rows: their numbers.
        angles: {metric: angle between the vectors that all layers make up together}.

    Returns:
        Two mappings. Headlines: {metric: the median over layers, or the mean for counts}. Details: `worst`
        {metric: number}, `overall` {metric: cosine of the vectors over all layers}, `kinds`
        {kind: {metric: [headline, worst]}} and `layers` {"names": [...], metric: [one number per layer]}.
        A metric that is defined in no layer is null.
    """
    metrics = list(dict.fromkeys(metric for row in rows for metric in row))
    columns = {metric: [row.get(metric) for row in rows] for metric in metrics}
    kinds = [kind(name) for name in names]
    by_kind = {
        wanted: {
            metric: list(_summary(metric, [v for v, of_layer in zip(values, kinds, strict=True) if of_layer == wanted]))
            for metric, values in columns.items()
        }
        for wanted in sorted(set(kinds))
    }
    summaries = {metric: _summary(metric, values) for metric, values in columns.items()}
    details = {
        "worst": {metric: worst for metric, (_, worst) in summaries.items()},
        "overall": {metric: rounded(angle.cosine) for metric, angle in (angles or {}).items()},
        "kinds": by_kind,
        "layers": {"names": list(names), **{m: [rounded(v) for v in values] for m, values in columns.items()}},
    }
    return {metric: headline for metric, (headline, _) in summaries.items()}, details


def rounded(value: float | None) -> float | None:
    """Return a number rounded to six significant digits, as records hold it."""
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _summary(metric: str, values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return (headline, worst)."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    headline = statistics.fmean(known) if metric in COUNTED else statistics.median(known)
    return rounded(headline), rounded((max if metric in LARGE_IS_WORST else min)(known))


def _depth(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key by which layer 10 comes after layer 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"\.", name)]
