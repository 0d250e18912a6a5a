"""Measures as text: a value with its interval, and in words what is no interval."""

from __future__ import annotations

import math

from lorax.reports.frames.measures import Measured
from lorax.reports.text import numbers


def probability(one: Measured) -> str:
    """Return `0.94 [0.70, 0.99]`."""
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def share(one: Measured) -> str:
    """Return a share in per cent: `94 [88, 101]`, or which shares are left where the set is no interval."""
    value = f"{100 * one.value:.0f}" if math.isfinite(one.value) else numbers.NOTHING
    if one.note == "outside":
        return f"{value} [up to {100 * one.low:.0f} or from {100 * one.high:.0f}]"
    if one.note == "unbounded":
        return f"{value} [any]"
    return f"{value} [{100 * one.low:.0f}, {100 * one.high:.0f}]"


def points(one: Measured) -> str:
    """Return a difference in points: `-1.2 [-2.0, -0.4]`."""
    return numbers.bounded(one.value, one.low, one.high, signed=True)


def decades(one: Measured) -> str:
    """Return `0.62 [0.25, 1.50]`; `≥0.62` where the set reaches an end of the grid."""
    high = "∞" if math.isinf(one.high) else f"{one.high:.2f}"
    return f"{'≥' if one.note == 'at least' else ''}{one.value:.2f} [{one.low:.2f}, {high}]"


def steps(one: Measured) -> str:
    """Return `62 [55, 69]`, a difference with its sign; `≥100` where no run arrived, else how many did not."""
    if one.note == "never":
        return f"≥{_interval(one, 0).split(' ')[0]}"
    return f"{_interval(one, 0)} ({one.note})" if one.note else _interval(one, 0)


def loss(one: Measured) -> str:
    """Return `0.612 [0.590, 0.634]`, a difference with its sign."""
    if not math.isfinite(one.value):
        return f"{numbers.NOTHING} ({one.note})" if one.note else numbers.NOTHING
    return _interval(one, 3)


def seconds(one: Measured) -> str:
    """Return a difference in loss with the step of either arm: `+0.012 [-0.004, +0.028] (57 : 100)`."""
    at = one.note.partition("step ")[2].replace(" against ", " : ")
    return f"{loss(one)} ({at})" if at else loss(one)


def _interval(one: Measured, digits: int) -> str:
    form = f"{'+' if one.measure.endswith('difference') else ''}.{digits}f"
    value, low, high = (_unsigned_zero(f"{number:{form}}") for number in (one.value, one.low, one.high))
    return f"{value} [{low}, {high}]" if math.isfinite(one.low) and math.isfinite(one.high) else value


def _unsigned_zero(text: str) -> str:
    """Return `0` for `-0`: what rounds to nothing has no sign."""
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text
