"""Which arms no cheaper one beats: by their means, and by what pairwise tests have shown."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from lorax.reports.frames.measures import Measured
from lorax.reports.frames.study import COSTS
from lorax.reports.text import numbers
from lorax.stats.result import StudyResult


def with_fronts(prices: pd.DataFrame, result: StudyResult | None) -> pd.DataFrame:
    """Return the prices with a column `front_<cost>` for each cost; null where the cost was not measured.

    on    no arm that costs at most as much has a higher mean
    open  one has, but none is shown to score higher
    off   one is shown to score higher: the pair is separated (with the reference by the verdict, others by Holm)

    Args:
        prices: from `frames.study.prices`.
        result: the study's, for its pairs.
    """
    higher = _shown(result)
    frame = prices.copy()
    for cost in COSTS:
        frame[f"front_{cost}"] = [
            _state(line, frame[(frame["task"] == line["task"]) & (frame[cost] <= line[cost])], higher)
            if pd.notna(line[cost]) else None
            for line in frame.to_dict("records")
        ]  # fmt: skip
    return frame


def measured(fronts: pd.DataFrame) -> list[Measured]:
    """Return every cost that was measured, with the place of the row against its front as a note."""
    return [
        Measured(line["task"], line["arm"], f"cost_{cost}", line[cost], math.nan, math.nan, math.nan, _UNITS[cost],
                 f"front: {line[f'front_{cost}']}")
        for line in fronts.to_dict("records")
        for cost in COSTS
        if pd.notna(line[cost])
    ]  # fmt: skip


def memory(prices: pd.DataFrame, task: str, reference: str) -> str | None:
    """Say which arms need more memory than the reference, and which of those that fit scores highest; None if unknown.

    Memory does not change along a run, so that a comparison at equal memory is one between the arms that fit.
    """
    lines = prices[(prices["task"] == task) & prices["peak_mb"].notna()].to_dict("records")
    peaks = {str(line["arm"]): float(line["peak_mb"]) for line in lines}
    if reference not in peaks or len(peaks) < 2:
        return None
    own = peaks[reference]
    fit = {str(line["arm"]): float(line["mean"]) for line in lines if line["peak_mb"] <= own}
    dearer = sorted((peak, arm) for arm, peak in peaks.items() if peak > own)
    more = ", ".join(f"{arm} +{100 * (peak / own - 1):.0f} %" for peak, arm in dearer)
    return (
        f"{task}: at the memory of {reference}, {numbers.count(own)} MB in its solo run, {_fitting(reference, fit)}; "
        "memory is the same all along a run." + (f" More: {more}." if more else "")
    )


def _fitting(reference: str, fit: Mapping[str, float]) -> str:
    """Say which arms need no more memory than the reference, and which of them scores highest."""
    others = [arm for arm in fit if arm != reference]
    if not others:
        return "no other arm fits"
    return f"{', '.join(others)} fit too, and {max(fit, key=lambda arm: fit[arm])} has the highest mean of them"


_UNITS = {"parameters": "parameters", "seconds": "seconds", "peak_mb": "MB", "examples": "examples"}


def _state(line: Mapping[Hashable, Any], cheaper: pd.DataFrame, higher: set[tuple[str, str, str]]) -> str:
    rivals = cheaper[(cheaper["arm"] != line["arm"]) & (cheaper["mean"] > line["mean"])]
    if rivals.empty:
        return "on"
    return "off" if any((line["task"], rival, line["arm"]) in higher for rival in rivals["arm"]) else "open"


def _shown(result: StudyResult | None) -> set[tuple[str, str, str]]:
    """Return (task, higher arm, lower arm) of every separated pair."""
    pairs = [pair for pair in result.pairs if pair.separated] if result else []
    return {
        (pair.task, pair.first, pair.second) if pair.estimate > 0 else (pair.task, pair.second, pair.first)
        for pair in pairs
    }
