"""Numbers as text, in one place, so that all tables read alike. Nothing measured is `-`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

NOTHING = "-"
Value = float | str | None
"""A measured number, a text that stands for several (`1 .. 4`), or nothing (None or nan)."""


def number(value: Value, digits: int = 3) -> str:
    """Return a number to so many significant digits; text passes through, nothing is `-`.

    Examples:
        >>> number(0.000316228), number("1 .. 2"), number(None)
        ('0.000316', '1 .. 2', '-')
    """
    if isinstance(value, str):
        return value
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}g}"


def count(value: Value) -> str:
    """Return a whole number with thousands marked.

    Examples:
        >>> count(1048576.0)
        '1,048,576'
    """
    if isinstance(value, str):
        return value
    return NOTHING if value is None or math.isnan(value) else f"{int(value):,}"


def span(values: Sequence[float | None], text: Callable[[float], str] = number) -> Value:
    """Return the one value, or both ends as text, or None.

    Examples:
        >>> span([2.0, 2.0]), span([1, None, 4096], count), span([])
        (2.0, '1 .. 4,096', None)
    """
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    if known[-1] == known[0] or math.isclose(known[0], known[-1], rel_tol=1e-6):
        return known[0]
    return f"{text(known[0])} .. {text(known[-1])}"


def rate(value: Value) -> str:
    """Return a learning rate as papers print it.

    Examples:
        >>> rate(0.0001778), rate(0.001)
        ('1.78e-4', '1e-3')
    """
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return NOTHING
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def points(value: float | None, signed: bool = False) -> str:
    """Return a fraction in percentage points, one decimal.

    Examples:
        >>> points(0.0123, signed=True), points(0.5)
        ('+1.2', '50.0')
    """
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{100 * value:{'+' if signed else ''}.1f}"
    return text.replace("-0.0", "0.0") if text.endswith("-0.0") else text


def bounded(value: float | None, low: float | None, high: float | None, signed: bool = False) -> str:
    """Return `54.3 [52.1, 56.5]`; without the interval where both ends are unbounded (one seed).

    Examples:
        >>> bounded(0.543, 0.521, 0.565), bounded(0.543, 0.521, math.inf)
        ('54.3 [52.1, 56.5]', '54.3 [52.1, ∞]')
    """
    if value is None or low is None or high is None or not math.isfinite(value):
        return points(value, signed)
    if math.isnan(low) or math.isnan(high) or (math.isinf(low) and math.isinf(high)):
        return points(value, signed)
    return f"{points(value, signed)} [{points(low, signed)}, {points(high, signed)}]"


def mean_sd(scores: Sequence[float], remarks: Sequence[str] = ()) -> str:
    """Return the mean ± SD (n - 1 below) of fractions in per cent, and their number with remarks.

    Examples:
        >>> mean_sd([0.5, 0.6], ["1 failed"]), mean_sd([0.5]), mean_sd([])
        ('55.0 ± 7.1 (2, 1 failed)', '50.0 (1)', '-')
    """
    if not scores:
        return ", ".join(remarks) or NOTHING
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.fmean(scores):.1f}{spread} ({', '.join([str(len(scores)), *remarks])})"
