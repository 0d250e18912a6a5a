"""The forest plot: each arm's difference from the reference with its interval, the margin, and the verdict in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorax.reports.figures.style import GREY, PALETTE, panels, per_cent, styled
from lorax.reports.text import numbers
from lorax.stats.estimands import ESTIMANDS

_LOOKS: Mapping[str, tuple[str, str, bool]] = {
    "better": (PALETTE[2], "^", True),
    "worse": (PALETTE[1], "v", True),
    "equivalent": (PALETTE[0], "s", True),
    "non_inferior": (PALETTE[0], "s", True),
    "undecided": (GREY, "o", False),
}
"""Verdict -> colour, marker, whether it is filled: told apart without colours too."""
_ROW, _LEAST = 0.23, 1.1
"""Inches of one row, and of a panel."""
_SIZE = 8.0
"""Of the text beside a row, in points."""


@styled
def forest(
    table: pd.DataFrame, margin: float, reference: str, claim: str = "difference", estimand: str = "rate"
) -> Figure | None:
    """Draw every comparison with the reference: estimate, interval, and the numbers and the verdict beside it.

    The band is the margin of equivalence; under claim `non_inferior` a line at -margin. An interval that leaves the
    panel ends in an arrow; its numbers stand beside it all the same.

    Args:
        table: columns task, arm, difference, difference_low, difference_high (fractions), verdict, verdict_words.
        margin: a fraction.
        reference: label of the arm that the others are compared with.
        claim: of the study.
        estimand: of the study; a figure is copied without its caption, so that it says what its verdicts are about.
    """
    shown = table[table["verdict"].isin(_LOOKS) & table["difference"].notna()]
    if shown.empty:
        return None
    tasks = list(dict.fromkeys(shown["task"]))
    most = max(int((shown["task"] == task).sum()) for task in tasks)
    figure, axes = panels(len(tasks), height=max(_LEAST, _ROW * (most + 2)), width=9.0)
    for panel, task in zip(axes, tasks, strict=True):
        _panel(panel, shown[shown["task"] == task], margin, one_sided=claim == "non_inferior")
        panel.set_title(task)
    axes[-1].set_xlabel(f"difference from {reference}, points")
    band = "not worse by the margin" if claim == "non_inferior" else "the margin"
    words = f"{ESTIMANDS[estimand]}; corrected intervals; band: {band} of {100 * margin:.6g} points"
    figure.supxlabel(words, fontsize=_SIZE, color=GREY)
    return figure


def _panel(panel: Axes, rows: pd.DataFrame, margin: float, one_sided: bool) -> None:
    limit = reach(rows["difference_low"].tolist(), rows["difference_high"].tolist(), margin)
    panel.axvspan(-margin, limit if one_sided else margin, color="#DCE9F3", lw=0, zorder=0)
    panel.axvline(0, color="#1A1A1A", lw=0.8, zorder=1)
    lines = rows.to_dict("records")
    texts = [_numbers(line) for line in lines]
    second = 8 + 0.62 * _SIZE * max(len(text) for text in texts)
    for place, (line, text) in enumerate(zip(lines, texts, strict=True)):
        colour = _row(panel, place, line, limit)
        _beside(panel, place, text, 8, "black")
        _beside(panel, place, str(line["verdict_words"]), second, colour)
    panel.set_xlim(-limit, limit)
    panel.set_ylim(len(lines) - 0.4, -0.6)
    panel.set_yticks(range(len(lines)), [str(line["arm"]) for line in lines])
    panel.tick_params(axis="y", length=0)
    panel.grid(False, axis="y")
    panel.spines["left"].set_visible(False)
    panel.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    per_cent(panel, "x")


def _numbers(line: Mapping[Any, Any]) -> str:
    return numbers.bounded(line["difference"], line["difference_low"], line["difference_high"], signed=True)


def _row(panel: Axes, y: int, line: Mapping[Any, Any], limit: float) -> str:
    """Draw one comparison; return its colour."""
    colour, marker, filled = _LOOKS[str(line["verdict"])]
    estimate, low, high = (float(line[key]) for key in ("difference", "difference_low", "difference_high"))
    if not math.isnan(low):
        left, right = max(low, -limit), min(high, limit)
        if left < right:
            panel.plot([left, right], [y, y], color=colour, lw=1.6, solid_capstyle="butt", zorder=2)
        for end, side in ((low, -1), (high, 1)):
            if side * end > limit:
                panel.plot(side * 0.985 * limit, y, marker="<" if side < 0 else ">", color=colour, ms=5, zorder=3)
    if abs(estimate) <= limit:
        panel.plot(estimate, y, marker=marker, color=colour, mfc=colour if filled else "white", ms=5.5, zorder=4)
    return colour


def _beside(panel: Axes, y: int, text: str, points: float, colour: str) -> None:
    """Write text so many points right of the axes: whatever their width, the layout leaves room for it."""
    panel.annotate(text, (1.0, y), (points, 0), xycoords=panel.get_yaxis_transform(), textcoords="offset points",
                   fontsize=_SIZE, va="center", color=colour, annotation_clip=False)  # fmt: skip


def reach(lows: list[float], highs: list[float], margin: float) -> float:
    """Return how far a panel reaches to either side: one far interval must not squeeze all others.

    It is the farthest end, three times the middle one at most, and twice the margin at least.

    Examples:
        >>> round(reach([-0.88, -0.02, -0.01], [-0.82, 0.01, 0.03], 0.01), 3)
        0.095
    """
    ends = [max(abs(low), abs(high)) for low, high in zip(lows, highs, strict=True)]
    known = [end for end in ends if math.isfinite(end)]
    if not known:
        return 2 * margin
    return 1.05 * max(2 * margin, min(max(known), 3 * float(np.median(known))))
