"""Final runs: training curves, score against parameters and time, agreement item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lorax.records import RunRecord
from lorax.records.fields import task
from lorax.reports.figures.style import GREY, colours, ink, label_ends, panels, styled
from lorax.reports.frames.runs import loss_curves


@styled
def training(
    finals: Mapping[str, Sequence[RunRecord]],
    arms: Sequence[str] | None = None,
    goals: Mapping[str, float] | None = None,
    told: Mapping[tuple[str, str], str] | None = None,
) -> Figure | None:
    """Draw smoothed training loss by step, a line (mean) and a band (lowest to highest seed) for each arm.

    The grey line is the loss to which steps are counted; the text after each name is how many.

    Args:
        finals: arm -> final runs, on any tasks.
        arms: all arms of the study, so that each has its colour in every figure.
        goals: task -> that loss.
        told: (task, arm) -> steps to it.
    """
    goals, told = goals or {}, told or {}
    tasks = list(dict.fromkeys(task(r) for records in finals.values() for r in records if r.curve))
    if not tasks:
        return None
    figure, axes = panels(len(tasks), height=3.0)
    looks = colours(arms or list(finals))
    for panel, name in zip(axes, tasks, strict=True):
        lines = {arm: loss_curves([r for r in records if task(r) == name]) for arm, records in finals.items()}
        lines = {arm: curves for arm, curves in lines.items() if np.isfinite(curves).any()}
        goal = goals.get(name)
        ends = []
        for arm, curves in lines.items():
            colour, _, style = looks[arm]
            x, known = np.arange(1, curves.shape[1] + 1), np.isfinite(curves).any(axis=0)
            x, curves = x[known], curves[:, known]
            panel.fill_between(x, np.nanmin(curves, 0), np.nanmax(curves, 0), color=colour, alpha=0.15, lw=0)
            middle = np.nanmean(curves, axis=0)
            panel.plot(x, middle, color=colour, ls=style)
            steps = told.get((name, arm))
            ends.append((x[-1], middle[-1], f"{arm}: {steps}" if steps else arm, colour))
        panel.set_title(name)
        if goal is not None:
            panel.axhline(goal, color=GREY, lw=0.8)
            panel.set_title(f"{name} (steps to loss {goal:.3g} after each name)")
        panel.set_yscale("log" if panel.get_ylim()[0] > 0 and _spans_decades(lines) else "linear")
        panel.set_ylabel("training loss")
        panel.margins(x=0.01)
        label_ends(panel, ends)
    axes[-1].set_xlabel("step")
    return figure


@styled
def agreement_map(tables: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Draw the agreement between arms, one heat map per task, per cent written in each cell.

    Args:
        tables: task -> result of `agreement`.
    """
    tables = {name: table for name, table in tables.items() if table.notna().to_numpy().any()}
    if not tables:
        return None
    count = max(len(table) for table in tables.values())
    size = 0.46 * count + 1.5
    figure, axes = panels(len(tables), height=size, width=size + 2.6)
    for panel, (name, table) in zip(axes, tables.items(), strict=True):
        values = table.to_numpy()
        # A fixed scale, so that a spread of three points does not look large.
        image = panel.imshow(values, cmap="cividis", vmin=min(0.5, np.nanmin(values)), vmax=1.0)
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                panel.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8,
                           color=ink(tuple(image.cmap(image.norm(value)))))  # fmt: skip
        panel.set_xticks(range(len(table)), table.columns, rotation=35, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(table)), table.index)
        panel.grid(False)
        panel.set_facecolor("#F2F2F2")  # a cell without a value: there is no second run to compare with
        panel.set_title(f"{name}: items on which two runs agree, %")
    return figure


def _spans_decades(arms: Mapping[str, np.ndarray]) -> bool:
    """Return whether the largest loss is more than twenty times the smallest."""
    values = np.concatenate([curves[np.isfinite(curves)] for curves in arms.values()])
    return values.size > 0 and values.min() > 0 and values.max() / values.min() > 20
