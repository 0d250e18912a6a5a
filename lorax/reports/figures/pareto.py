"""Score against cost: which arms no cheaper one beats, by their means and by what was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from lorax.reports.figures.style import GREY, Look, colours, legend_right, panels, per_cent, styled

_LABELS = {
    "parameters": "trained parameters",
    "seconds": "seconds, initialisation and training",
    "peak_mb": "peak memory, MB",
    "examples": "training examples",
}
_STATES = {
    "on": "no arm of at most this cost has a higher mean (line: the front; marks of nearly equal cost stand aside)",
    "open": "one has, but is not shown to score higher",
    "off": "one is shown to score higher",
}


@styled
def pareto(frame: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure | None:
    """Draw the score with its interval against each cost that differs between arms, and the front.

    Args:
        frame: from `frames.pareto.with_fronts`: arm, task, mean, low, high, the costs, and a front column for each.
        arms: all arms of the study, so that each has its colour in every figure.
    """
    shown = frame[frame["parameters"].fillna(0) > 0]
    costs = [cost for cost in _LABELS if cost in shown and shown[cost].nunique() > 1]
    if not costs:
        return None
    tasks, looks = list(dict.fromkeys(shown["task"])), colours(arms or list(dict.fromkeys(frame["arm"])))
    figure, axes = panels(len(tasks), height=3.2, width=3.5 * len(costs) + 1.8, columns=len(costs))
    for place, panel in enumerate(axes):
        task, cost = tasks[place // len(costs)], costs[place % len(costs)]
        _panel(panel, shown[(shown["task"] == task) & shown[cost].notna()], cost, looks)
        panel.set_title(task)
        if place % len(costs) == 0:
            panel.set_ylabel("test score, %")
        if place >= len(axes) - len(costs):
            panel.set_xlabel(_LABELS[cost])
    present = {arm: looks[arm] for arm in looks if arm in set(shown["arm"])}
    legend_right(axes[len(costs) - 1], {arm: (c, m, "none") for arm, (c, m, _) in present.items()})
    handles = [_mark(state, GREY, "o", text) for state, text in _STATES.items()]
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=8, ncols=1)
    return figure


def _panel(panel: Axes, rows: pd.DataFrame, cost: str, looks: Mapping[str, Look]) -> None:
    for line, aside in zip(rows.to_dict("records"), dodged(rows[cost].tolist()), strict=True):
        colour, marker, _ = looks[line["arm"]]
        state, x, ends = line[f"front_{cost}"], line[cost], [line["low"], line["high"]]
        figure = panel.figure
        assert isinstance(figure, Figure)
        moved = panel.transData + ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans)
        if np.all(np.isfinite(ends)):
            panel.plot([x, x], ends, color=colour, marker="_", ms=4, lw=1.1, alpha=0.35 if state == "off" else 0.9,
                       transform=moved, zorder=2)  # fmt: skip
        mark = _mark(state, colour, marker)
        mark.set_data([x], [line["mean"]])
        mark.set_transform(moved)
        panel.add_line(mark)
    for end in ("mean", "low", "high"):  # marks that are moved aside do not count for the limits
        known = rows[np.isfinite(rows[end])]
        panel.plot(known[cost], known[end], ls="none", marker="none")
    front = rows[rows[f"front_{cost}"] == "on"].sort_values(cost)
    panel.plot(front[cost], front["mean"], color=GREY, lw=1.0, drawstyle="steps-post", zorder=1)
    panel.margins(x=0.12)
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, -0.02), min(high, 1.02))  # t intervals of few seeds reach beyond 0 and 1
    if len(rows):
        _size_axis(panel, rows[cost])
    per_cent(panel)


def dodged(costs: Sequence[float]) -> list[float]:
    """Return by how many points each mark is moved aside, so that arms of nearly the same cost can be told apart.

    Examples:
        >>> dodged([100, 400, 401, 900])
        [0.0, -2.0, 2.0, 0.0]
    """
    place = np.array(costs, dtype=float)
    if len(place) and _spreads(place):
        place = np.log10(place)
    order, span = np.argsort(place, kind="stable"), np.ptp(place) if len(place) else 0.0
    moved = [0.0] * len(place)
    for group in np.split(order, np.where(np.diff(place[order]) > 0.02 * span)[0] + 1):
        for k, at in enumerate(group):
            moved[at] = 4.0 * (k - (len(group) - 1) / 2)
    return moved


def _spreads(values: np.ndarray | pd.Series) -> bool:
    """Return whether costs span more than a factor of five: their axis is logarithmic then."""
    return bool(np.max(values) > 5 * np.min(values))


def _mark(state: str, colour: str, marker: str, label: str = "") -> Line2D:
    """Return a mark: filled on the front, hollow where that is open, faint and small where it is shown to be off."""
    face = colour if state == "on" else "white"
    return Line2D([], [], color=colour, marker=marker, ls="none", mfc=face, ms=4.5 if state == "off" else 6,
                  alpha=0.45 if state == "off" else 1.0, label=label, zorder=3)  # fmt: skip


def _size_axis(panel: Axes, values: pd.Series) -> None:
    """Set the axis of a size: logarithmic if values span more than a factor of five; ticks such as 1k, 30k, 2M."""
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    if not _spreads(values):
        panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        return
    panel.set_xscale("log")
    decades = np.log10(values.max() / values.min())
    subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
    panel.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    panel.xaxis.set_minor_locator(NullLocator())


def _short(value: float) -> str:
    for size, mark in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{mark}"
    return f"{value:g}"
