"""Learning rates: each arm's response, who leads where all arms use one rate, how firm the choice is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorax.reports.figures.style import (
    GREY,
    Look,
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
from lorax.reports.frames.learning_rates import Stretch, curve, means_along, stretches

DEPTH, LEAD = 0.2, 0.1
"""What the panels show: scores this far below the best, leads this large; fractions."""


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
        chosen: (task, arm) -> selected rate, ringed.
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
        for arm, runs in frame[frame["task"] == task].groupby("arm", sort=False):
            points = curve(runs).dropna(subset=["mean"])
            colour, marker, style = looks[arm]
            panel.fill_between(points["lr"], points["min"], points["max"], color=colour, alpha=0.15, lw=0)
            panel.plot(points["lr"], points["mean"], color=colour, marker=marker, ls=style)
            best = points[np.isclose(points["lr"], (chosen or {}).get((task, arm), np.nan), rtol=1e-3)]
            panel.plot(best["lr"], best["mean"], "o", ms=10, mfc="none", mec=colour, mew=1.4)
            _crosses(panel, runs, colour)
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
    parts = stretches(frame)
    if not parts:
        return None
    tasks = list(dict.fromkeys(part.task for part in parts))
    looks = colours(arms or list(dict.fromkeys(frame["arm"])))
    figure, axes = panels(len(tasks), height=2.9)
    cut = False
    for panel, task in zip(axes, tasks, strict=True):
        rates, means = means_along(frame[frame["task"] == task])
        ends = []
        for arm, values in means.items():
            lead = values - means.get(reference, np.zeros_like(rates))
            known = np.flatnonzero(np.isfinite(lead))
            if len(known):
                panel.plot(rates, lead, color=looks[arm][0], ls=looks[arm][2])
                ends.append((rates[known[-1]], lead[known[-1]], arm, looks[arm][0]))
        of_task = [part for part in parts if part.task == task]
        cut |= _crop(panel, -LEAD, LEAD)
        ends = [(x, min(max(y, panel.get_ylim()[0]), panel.get_ylim()[1]), *rest) for x, y, *rest in ends]
        panel.set_xlim(of_task[0].low / 1.3, of_task[-1].high * 1.3)
        _finish(panel, task, f"lead over {reference}, points", last=panel is axes[-1])
        _winners(panel, of_task, looks)
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
        frequency: (task, arm) -> {rate: share of resamples}; from the tuning runs alone.
        arms: all arms of the study.
    """
    if not frequency:
        return None
    tasks = list(dict.fromkeys(task for task, _ in frequency))
    names = list(dict.fromkeys(arm for _, arm in frequency))
    looks, arms = colours(arms or names), names
    figure, axes = panels(len(tasks), height=0.55 * len(arms) + 0.7)
    for panel, task in zip(axes, tasks, strict=True):
        for place, arm in enumerate(reversed(arms)):
            shares = frequency.get((task, arm), {})
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


def _crop(panel: Axes, low: float, high: float) -> bool:
    """Narrow the panel to low..high if it reaches beyond; return whether much was cut off.

    A collapsed run far below the others would otherwise take most of the room.
    """
    bottom, top = panel.get_ylim()
    if not np.isfinite([low, high]).all():
        return False
    panel.set_ylim(max(low, bottom), min(high, top))
    return bottom < low - 0.1 * (high - low) or top > high + 0.1 * (high - low)


def _winners(panel: Axes, parts: Sequence[Stretch], looks: Mapping[str, Look]) -> None:
    """Colour the foot of the panel by winner; name it where the name fits."""
    low, high = panel.get_ylim()
    panel.set_ylim(low - 0.16 * (high - low), high)
    points = 72 * size_of(panel)[0] / np.ptp(np.log(panel.get_xlim()))
    for item in parts:
        panel.axvspan(item.low, item.high, ymax=0.07, color=looks[item.winner][0], lw=0, zorder=3)
        if points * np.log(item.high / item.low) > 4.6 * len(item.winner):
            panel.text(np.sqrt(item.low * item.high), 0.035, item.winner, ha="center", va="center",
                       fontsize=7, color=ink(looks[item.winner][0]), transform=panel.get_xaxis_transform(),
                       zorder=4)  # fmt: skip


def _crosses(panel: Axes, runs: pd.DataFrame, colour: str) -> None:
    """Mark the rates at which runs diverged, at the foot of the panel."""
    diverged = runs[runs["score"].isna()]
    if diverged.empty:
        return
    panel.plot(diverged["lr"], np.full(len(diverged), 0.02), "x", color=colour, ms=5, mew=1.4,
               transform=panel.get_xaxis_transform(), clip_on=False)  # fmt: skip


def _finish(panel: Axes, title: str, label: str, last: bool) -> None:
    rate_axis(panel)
    per_cent(panel)
    panel.set_title(title)
    panel.set_ylabel(label)
    if last:
        panel.set_xlabel("learning rate")
