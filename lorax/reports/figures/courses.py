"""Seeds until decided: the interval of every comparison against the number of seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorax.reports.figures.style import GREY, colours, label_ends, panels, per_cent, styled
from lorax.stats.result import StudyResult
from lorax.stats.sequential import needed


@styled
def courses(result: StudyResult, arms: Sequence[str] | None = None) -> Figure | None:
    """Draw what no look so far has rejected, arm minus reference, seed by seed; a dot where an arm was decided.

    Args:
        result: of a study with seeds until decided; of any other there is no figure.
        arms: all arms of the study, so that each has its colour in every figure.
    """
    known = {place: course for place, course in (result.courses or {}).items() if course.looks}
    if not known:
        return None
    tasks, looks = list(dict.fromkeys(task for task, _ in known)), colours(arms or [arm for _, arm in known])
    figure, axes = panels(len(tasks), height=3.2)
    for panel, name in zip(axes, tasks, strict=True):
        drawn, reach = [], []
        for (task, arm), course in known.items():
            if task != name:
                continue
            colour, marker, style = looks[arm]
            seeds = np.array([seen.seeds for seen in course.looks])
            low, high = course.bounds(needed(result.alpha, course.open or len(result.comparisons)))
            shown = np.isfinite(low) | np.isfinite(high)
            reach += [*np.abs(low[np.isfinite(low)][-1:]), *np.abs(high[np.isfinite(high)][-1:])]
            drawn.append((arm, colour, marker, style, seeds[shown], low[shown], high[shown], course.sign))
        limit = 2.5 * max(reach, default=0.1)  # the first looks have intervals that would hide all others
        ends = []
        for arm, colour, marker, style, seeds, low, high, sign in drawn:
            if not len(seeds):
                continue
            low, high = np.clip(low, -2 * limit, None), np.clip(high, None, 2 * limit)
            panel.fill_between(seeds, low, high, color=colour, alpha=0.10, lw=0)
            panel.plot(seeds, low, color=colour, ls=style)
            panel.plot(seeds, high, color=colour, ls=style)
            end = low[-1] if sign > 0 else high[-1]
            if sign:
                panel.plot(seeds[-1], end, color=colour, marker=marker, ls="")
            ends.append((seeds[-1], min(max(end, -limit), limit), arm, colour))
        panel.axhline(0.0, color=GREY, lw=0.8)
        for end in (-result.margin, result.margin):
            panel.axhline(end, color=GREY, lw=0.6, ls=":")
        panel.set_ylim(-limit, limit)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        per_cent(panel)
        panel.set_title(name)
        panel.set_ylabel(f"points over {result.reference}")
        label_ends(panel, ends)
    axes[-1].set_xlabel("seeds")
    return figure
