"""Score and first-step alignment over alpha, zeta and gamma, one curve per rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorax.reports.figures.style import MARKERS, PALETTE, panels, per_cent, styled
from lorax.reports.frames.factor_lines import Line

TITLES = {"score": "test score, %", "cosine": "cosine of first SGD step to -gradient"}


@styled
def factor_map(lines: Mapping[str, Sequence[Line]], quantity: str) -> Figure | None:
    """Draw tasks down, method and factor across; a curve through the means, one dot per run.

    Args:
        lines: task -> its lines, from `factor_lines`.
        quantity: `score` or `cosine`.

    Returns:
        None where no two arms differ in one factor alone, or nothing was measured.
    """
    measured = {
        task: [line for line in of_task if line.runs[quantity].notna().any()] for task, of_task in lines.items()
    }
    columns = list(dict.fromkeys((line.method, line.factor) for of_task in measured.values() for line in of_task))
    if not columns:
        return None
    ranks = sorted({line.rank for of_task in measured.values() for line in of_task})
    width = min(11.0, 2.1 + 2.2 * len(columns))
    figure, axes = panels(len(measured), height=2.5, width=width, columns=len(columns))
    for row, (task, of_task) in enumerate(measured.items()):
        across = axes[row * len(columns) : (row + 1) * len(columns)]
        for place, (panel, (method, factor)) in enumerate(zip(across, columns, strict=True)):
            of_panel = [line for line in of_task if (line.method, line.factor) == (method, factor)]
            if place:  # before anything is drawn: axes joined later would only copy the first panel's limits
                panel.sharey(across[0])
            _panel(panel, of_panel, quantity, ranks)
            panel.set_title(f"{method}, {task}" if len(measured) > 1 else method, fontsize=9)
            panel.set_xlabel(factor)
            if place:
                panel.tick_params(labelleft=False)
            else:
                panel.set_ylabel(TITLES[quantity])
        if quantity == "cosine" and min(line.runs[quantity].min() for line in of_task) >= 0:
            across[0].set_ylim(bottom=0)
    return figure


def _panel(panel: Axes, lines: Sequence[Line], quantity: str, ranks: Sequence[int]) -> None:
    values = sorted({value for line in lines for value in line.runs["value"]})
    for line in lines:
        at = ranks.index(line.rank)
        of_rank = [other for other in lines if other.rank == line.rank]
        style = ("-", "--", ":", "-.")[of_rank.index(line) % 4]
        means = line.runs.groupby("value")[quantity].mean()
        name = f"r={line.rank}" + (f", {line.fixed}" if line.fixed else "")
        panel.plot(means.index, means, style, color=PALETTE[at], marker=MARKERS[at], label=name)
        panel.plot(line.runs["value"], line.runs[quantity], ".", color=PALETTE[at], alpha=0.35, ms=4, mew=0)
    panel.set_xscale("log", base=2)
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.minorticks_off()
    if quantity == "score":
        per_cent(panel)
    panel.legend(frameon=False, fontsize=7.5, handlelength=2.6)
