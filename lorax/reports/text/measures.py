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


def decades(one: Measured) -> str:
    """Return `0.62 [0.25, 1.50]`; `≥0.62` where the set reaches an end of the grid."""
    high = "∞" if math.isinf(one.high) else f"{one.high:.2f}"
    return f"{'≥' if one.note == 'at least' else ''}{one.value:.2f} [{one.low:.2f}, {high}]"
