"""Verdicts in words that carry the margin: a bare "worse" does not say by how much."""

from __future__ import annotations

import math

from lorax.reports.text import numbers
from lorax.stats.result import Across, Comparison

_SMALLEST = 0.0005
"""Bounds below this fraction, 0.05 points, are written with one significant digit instead of 0.0."""


Judged = Comparison | Across
_WORDS = {
    "better": "better by at least {}",
    "worse": "worse by at least {}",
    "equivalent": "equivalent within {}",
    "non_inferior": "not worse by {} (non-inferior)",
}


def words(comparison: Judged, margin: float) -> str:
    """Return a verdict with the bound that its interval shows, or with the margin.

    Examples:
        >>> [kind(cell) for cell in ("worse by at least 1.2", "equivalent within 2.0", "lora")]
        ['worse', 'equivalent', '']
    """
    text = _WORDS.get(comparison.verdict)
    return comparison.verdict if text is None else text.format(bound_of(comparison, margin))


def bound_of(comparison: Judged, margin: float) -> str:
    """Return what a verdict carries, in points: the end of the interval nearer to 0, or the margin.

    Args:
        comparison: with a verdict.
        margin: of equivalence or non-inferiority, a fraction.
    """
    if comparison.verdict in ("better", "worse"):
        return _bound(comparison.low if comparison.verdict == "better" else -comparison.high)
    text = f"{100 * margin:.6g}"
    return text if "." in text or "e" in text else f"{text}.0"


def kind(cell: str) -> str:
    """Return the verdict that a cell's words stand for, as a colour needs it; empty for any other cell.

    Non-inferior has the colour of equivalent.
    """
    for start, name in _STARTS.items():
        if cell.startswith(start):
            return name
    return cell if cell == "undecided" else ""


_STARTS = {
    "better by at least ": "better",
    "worse by at least ": "worse",
    "equivalent within ": "equivalent",
    "not worse by ": "equivalent",
}


def _bound(value: float) -> str:
    """Return a bound as the interval prints it; a tiny one is not rounded to nothing."""
    if 0 < value < _SMALLEST:
        digits = -math.floor(math.log10(100 * value))
        return f"{math.floor(100 * value * 10**digits) / 10**digits:.{digits}f}"
    return numbers.points(value)
