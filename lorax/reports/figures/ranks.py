"""Score against rank, and the rank of each layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorax.reports.figures.style import colours, ink, label_ends, panels, per_cent, styled

MOST_NUMBERS = 16
"""Blocks up to which the ranks are written into the cells."""


@styled
def score_by_rank(frame: pd.DataFrame) -> Figure | None:
    """Draw the score against the rank, a panel a task: a line through means, dashed where it is of one training.

    Args:
        frame: from `frames.ranks.by_rank`.
    """
    tasks, rows = list(dict.fromkeys(frame["task"])), list(dict.fromkeys(frame["row"]))
    if not tasks:
        return None
    figure, axes = panels(len(tasks), height=2.8)
    looks = colours(rows)
    for panel, name in zip(axes, tasks, strict=True):
        of_task, ends = frame[frame["task"] == name], []
        for row, runs in of_task.groupby("row", sort=False):
            colour, marker, _ = looks[str(row)]
            means = runs.groupby("rank")["score"].mean()
            style = (0, (4, 2)) if runs["once"].iloc[0] else "-"
            panel.plot(means.index, means, color=colour, marker=marker, ls=style)
            panel.plot(runs["rank"], runs["score"], ".", color=colour, alpha=0.4, ms=4, mew=0)
            ends.append((float(means.index[-1]), float(means.iloc[-1]), str(row).replace(", ", "\n"), colour))
        ranks = sorted(of_task["rank"].unique())
        panel.set_xscale("log", base=2)
        panel.set_xticks(ranks, [str(rank) for rank in ranks])
        panel.minorticks_off()
        panel.set_title(name)
        panel.set_ylabel("score, %")
        per_cent(panel)
        label_ends(panel, ends, size=8)
    axes[-1].set_xlabel("rank")
    return figure


@styled
def rank_by_layer(frame: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure | None:
    """Draw the rank that each layer has in the end: modules down, blocks across, a map for each arm and task.

    Args:
        frame: from `frames.ranks.ranks_of_layers`.
        arms: in this order; None: as they come.
    """
    maps = list(dict.fromkeys(zip(frame["arm"], frame["task"], strict=True)))
    if arms is not None:
        maps.sort(key=lambda pair: arms.index(pair[0]))
    if not maps:
        return None
    several, top = len(set(frame["task"])) > 1, max(float(frame["rank"].max()), 1.0)
    tables = {pair: _table(frame[(frame["arm"] == pair[0]) & (frame["task"] == pair[1])]) for pair in maps}
    figure, axes = panels(len(maps), height=0.24 * max(map(len, tables.values())) + 0.9)
    for panel, (pair, table) in zip(axes, tables.items(), strict=True):
        image = panel.imshow(table.to_numpy(), cmap="cividis", vmin=0, vmax=top, aspect="auto")
        for (i, j), value in np.ndenumerate(table.to_numpy()):
            if np.isfinite(value) and table.shape[1] <= MOST_NUMBERS:
                panel.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=7,
                           color=ink(tuple(image.cmap(image.norm(value)))))  # fmt: skip
        panel.set_xticks(range(table.shape[1]), [str(block) for block in table.columns])
        if table.shape[1] > MOST_NUMBERS:
            panel.xaxis.set_major_locator(MaxNLocator(MOST_NUMBERS, integer=True))
        panel.set_yticks(range(len(table)), list(table.index), fontsize=7.5)
        panel.grid(False)
        panel.set_facecolor("#F2F2F2")  # a place where the block has no such module
        panel.set_title(f"{pair[0]}, {pair[1]}" if several else pair[0])
        figure.colorbar(image, ax=panel, pad=0.01, fraction=0.04).ax.tick_params(labelsize=7)
    axes[-1].set_xlabel("block")
    return figure


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return modules down, in the order of the model, and blocks across."""
    table = frame.pivot_table(index="module", columns="block", values="rank", sort=False)
    return table[sorted(table.columns)]
