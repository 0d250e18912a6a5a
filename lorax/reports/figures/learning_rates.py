"""Learning rates: the response of each arm, who would have won at a fixed one, how firm the choice is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lorax.reports.figures.style import (
    GREY,
    colours,
    ink,
    label_ends,
    legend_right,
    panels,
    per_cent,
    rate_axis,
    size_of,
    styled,
)

DEPTH, LEAD = 0.2, 0.1
"""What the panels show: scores this far below the best, leads this large; fractions."""


@dataclass(frozen=True)
class Stretch:
    """An interval of learning rates in which one arm has the best mean, everyone at the same rate."""

    task: str
    low: float
    high: float
    winner: str
    runner_up: str
    gap: float
    """Largest lead over the runner-up inside, fraction."""

    def line(self) -> str:
        """Return what a paper that fixed the rate here would have reported."""
        return (
            f"{self.task}: at a fixed lr of {_rate(self.low)} to {_rate(self.high)}, {self.winner} leads"
            f" (by up to {100 * self.gap:.1f} points over {self.runner_up})"
        )


def curve(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, lowest and highest score over seeds at each learning rate, sorted by rate.

    Where a seed diverged (null score) the mean is null: the other seeds alone would flatter the rate.

    Args:
        frame: runs of one arm on one task, with columns lr and score.
    """
    by_rate = frame.groupby("lr")["score"]
    points = by_rate.agg(["min", "max"]).assign(mean=by_rate.agg(lambda scores: scores.mean(skipna=False)))
    return points.reset_index().sort_values("lr", ignore_index=True)


def stretches(frame: pd.DataFrame, steps: int = 200) -> list[Stretch]:
    """Return, per task, the intervals of learning rate on which each arm has the best mean.

    Curves are joined by straight lines in log(lr), inside the range that each arm was run at; rates
    that fewer than two arms cover are left out.

    Args:
        frame: columns arm, task, lr, score; one row a tuning run.
        steps: number of rates looked at.
    """
    found = []
    for task, part in frame.groupby("task", sort=False):
        lines = {arm: curve(own) for arm, own in part.groupby("arm", sort=False)}
        grid = np.geomspace(part["lr"].min(), part["lr"].max(), steps)
        values = np.array([_along(points, grid) for points in lines.values()])
        usable = np.isfinite(values).sum(axis=0) >= 2
        ranked = np.argsort(-np.where(np.isfinite(values), values, -np.inf), axis=0, kind="stable")
        arms = list(lines)
        start = None
        for i in range(steps + 1):
            same = i < steps and usable[i] and start is not None and ranked[0, i] == ranked[0, start]
            if start is not None and not same:
                inside = range(start, i)
                lead = [values[ranked[0, k], k] - values[ranked[1, k], k] for k in inside]
                at = start + int(np.argmax(lead))
                # Borders lie half a step outside, so that neighbouring stretches meet.
                half = np.sqrt(grid[1] / grid[0])
                low, high = max(grid[start] / half, grid[0]), min(grid[i - 1] * half, grid[-1])
                found.append(Stretch(str(task), low, high, arms[ranked[0, at]], arms[ranked[1, at]],
                                     float(max(lead))))  # fmt: skip
                start = None
            if start is None and i < steps and usable[i]:
                start = i
    return found


@styled
def response(
    frame: pd.DataFrame,
    chosen: Mapping[tuple[str, str], float] | None = None,
    base: Mapping[str, float] | None = None,
    arms: Sequence[str] | None = None,
) -> Figure | None:
    """Draw score against learning rate: a curve and a band (lowest to highest seed) for each arm.

    Args:
        frame: tuning runs: arm, task, lr, seed, score (validation, fraction; null if diverged).
        chosen: (arm, task) -> selected rate, ringed.
        base: task -> score of the frozen base, dashed.
        arms: all arms of the study, so that each has its colour in every figure.
    """
    if frame.empty:
        return None
    tasks, present = list(dict.fromkeys(frame["task"])), list(dict.fromkeys(frame["arm"]))
    looks = colours(arms or present)
    figure, axes = panels(len(tasks))
    cut = False
    for panel, task in zip(axes, tasks, strict=True):
        for arm, own in frame[frame["task"] == task].groupby("arm", sort=False):
            points = curve(own).dropna(subset=["mean"])
            colour, marker, style = looks[arm]
            panel.fill_between(points["lr"], points["min"], points["max"], color=colour, alpha=0.15, lw=0)
            panel.plot(points["lr"], points["mean"], color=colour, marker=marker, ls=style)
            best = points[np.isclose(points["lr"], (chosen or {}).get((arm, task), np.nan), rtol=1e-3)]
            panel.plot(best["lr"], best["mean"], "o", ms=10, mfc="none", mec=colour, mew=1.4)
            _crosses(panel, own, colour)
        if base and base.get(task) is not None:
            panel.axhline(base[task], color=GREY, ls=(0, (4, 3)), lw=1)
        _finish(panel, task, "validation score, %", last=panel is axes[-1])
        best = frame.loc[frame["task"] == task, "score"].max()
        cut |= _crop(panel, best - DEPTH, best + 0.1 * DEPTH)
    legend_right(axes[0], {arm: looks[arm] for arm in present}, {"frozen base": GREY} if base else None)
    words = "ring: selected; band: lowest to highest tuning seed; cross: diverged"
    words += f"; more than {100 * DEPTH:.0f} points below the best is cut off" if cut else ""
    figure.supxlabel(words, fontsize=8, color=GREY)
    return figure


@styled
def winner_flip(frame: pd.DataFrame, reference: str, arms: Sequence[str] | None = None) -> Figure | None:
    """Draw each arm's lead over the reference when both use the same rate, and who wins where.

    Args:
        frame: tuning runs, as in `response`.
        reference: the arm at the zero line.
        arms: all arms of the study.
    """
    found = stretches(frame)
    if not found:
        return None
    tasks = list(dict.fromkeys(part.task for part in found))
    looks = colours(arms or list(dict.fromkeys(frame["arm"])))
    figure, axes = panels(len(tasks), height=2.9)
    cut = False
    for panel, task in zip(axes, tasks, strict=True):
        part = frame[frame["task"] == task]
        lines = {arm: curve(own) for arm, own in part.groupby("arm", sort=False)}
        grid = np.geomspace(part["lr"].min(), part["lr"].max(), 200)
        level = _along(lines[reference], grid) if reference in lines else np.zeros_like(grid)
        ends = []
        for arm, points in lines.items():
            lead = _along(points, grid) - level
            known = np.flatnonzero(np.isfinite(lead))
            if len(known):
                panel.plot(grid, lead, color=looks[arm][0], ls=looks[arm][2])
                ends.append((grid[known[-1]], lead[known[-1]], arm, looks[arm][0]))
        own = [item for item in found if item.task == task]
        cut |= _crop(panel, -LEAD, LEAD)
        ends = [(x, min(max(y, panel.get_ylim()[0]), panel.get_ylim()[1]), *rest) for x, y, *rest in ends]
        panel.set_xlim(own[0].low / 1.3, own[-1].high * 1.3)
        _finish(panel, task, f"lead over {reference}, points", last=panel is axes[-1])
        _strip(panel, own, looks)
        label_ends(panel, ends)
    words = "bar below each panel: the arm with the best mean where all use this rate"
    words += f"; leads beyond {100 * LEAD:.0f} points are cut off" if cut else ""
    figure.supxlabel(words, fontsize=8, color=GREY)
    return figure


@styled
def selection(
    frequency: Mapping[tuple[str, str], Mapping[float, float]], arms: Sequence[str] | None = None
) -> Figure | None:
    """Draw how often each learning rate would have been selected had the tuning seeds been others.

    Args:
        frequency: (arm, task) -> {rate: share of resamples}; from the tuning runs alone.
        arms: all arms of the study.
    """
    if not frequency:
        return None
    tasks = list(dict.fromkeys(task for _, task in frequency))
    names = list(dict.fromkeys(arm for arm, _ in frequency))
    looks, arms = colours(arms or names), names
    figure, axes = panels(len(tasks), height=0.55 * len(arms) + 0.7)
    for panel, task in zip(axes, tasks, strict=True):
        for place, arm in enumerate(reversed(arms)):
            shares = frequency.get((arm, task), {})
            panel.plot(list(shares), [place] * len(shares), "o", color=GREY, ms=2)  # all rates tried
            for rate, share in shares.items():
                top = place + 0.72 * share
                panel.plot([rate, rate], [place, top], color=looks[arm][0], lw=7, solid_capstyle="butt")
                if share >= 0.01:
                    panel.annotate(f"{100 * share:.0f}", (rate, top), xytext=(0, 1.5), ha="center",
                                   textcoords="offset points", fontsize=7, color=GREY)  # fmt: skip
        panel.set_yticks(range(len(arms)), list(reversed(arms)))
        panel.set_ylim(-0.1, len(arms) + 0.05)
        panel.grid(axis="x", visible=False)
        panel.set_title(task)
        rate_axis(panel)
    axes[-1].set_xlabel("learning rate (bar: per cent of resamples of the tuning runs that select it)")
    return figure


def _crop(panel, low: float, high: float) -> bool:
    """Narrow the panel to low..high where it reaches beyond; say whether it did. A collapse needs no room."""
    bottom, top = panel.get_ylim()
    if not np.isfinite([low, high]).all():
        return False
    panel.set_ylim(max(low, bottom), min(high, top))
    return bottom < low - 0.1 * (high - low) or top > high + 0.1 * (high - low)


def _along(points: pd.DataFrame, grid: np.ndarray) -> np.ndarray:
    points = points.dropna(subset=["mean"])
    if points.empty:
        return np.full(len(grid), np.nan)
    return np.interp(np.log(grid), np.log(points["lr"]), points["mean"], left=np.nan, right=np.nan)


def _strip(panel, found: list[Stretch], looks) -> None:
    """Colour the foot of the panel by winner; name it where the name fits."""
    low, high = panel.get_ylim()
    panel.set_ylim(low - 0.16 * (high - low), high)
    points = 72 * size_of(panel)[0] / np.ptp(np.log(panel.get_xlim()))
    for item in found:
        panel.axvspan(item.low, item.high, ymax=0.07, color=looks[item.winner][0], lw=0, zorder=3)
        if points * np.log(item.high / item.low) > 4.6 * len(item.winner):
            panel.text(np.sqrt(item.low * item.high), 0.035, item.winner, ha="center", va="center",
                       fontsize=7, color=ink(looks[item.winner][0]), transform=panel.get_xaxis_transform(),
                       zorder=4)  # fmt: skip


def _crosses(panel, own: pd.DataFrame, colour: str) -> None:
    lost = own[own["score"].isna()]
    if lost.empty:
        return
    panel.plot(lost["lr"], np.full(len(lost), 0.02), "x", color=colour, ms=5, mew=1.4,
               transform=panel.get_xaxis_transform(), clip_on=False)  # fmt: skip


def _finish(panel, title: str, label: str, last: bool) -> None:
    rate_axis(panel)
    per_cent(panel)
    panel.set_title(title)
    panel.set_ylabel(label)
    if last:
        panel.set_xlabel("learning rate")


def _rate(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
