"""Scale stability as figures: what `python -m lorax.diagnostics.scale` measured, against r, m and n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lorax.reports.figures.style import GREY, Look, colours, panels, styled

SIDES = ("forward", "backward")


def draw_scale(measured: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures by file name: the start, and the first step for each number of tokens."""
    grids = measured["grids"]
    drawn = {"start": moments(measured, next(iter(grids.values())), "init", "at the start")}
    for tokens, grid in grids.items():
        text = "after a first step from 1 token" if tokens == "1" else f"after a first step from {tokens} tokens"
        drawn[f"step_{tokens}"] = moments(measured, grid, "step", text)
    return drawn


@styled
def moments(measured: Mapping[str, Any], grid: Mapping[str, Any], stage: str, title: str) -> Figure:
    """Draw forward (above) and backward (below) root mean squares against r, m and n, one curve per method.

    Args:
        measured: as in `draw_scale`; says what was varied.
        grid: label -> one `scale_grid`.
        stage: init | step.
        title: the stage in words.
    """
    about, looks = measured["about"], colours(list(grid))
    figure, axes = panels(2, height=2.7, width=8.2, columns=3)
    for place, panel in enumerate(axes):
        side, key = SIDES[place // 3], "rmn"[place % 3]
        zero = [
            label for label, fit in grid.items() if not _curve(panel, fit, f"{side}_{stage}", key, about, looks[label])
        ]
        _axis(panel, about["ranks"] if key == "r" else about["widths"])
        fixed = {"r": _middle(about), "m": about["centre"], "n": about["centre"]}
        others = ", ".join(f"{name} = {value}" for name, value in fixed.items() if name != key)
        panel.set_xlabel(f"{ {'r': 'rank r', 'm': 'outputs m', 'n': 'inputs n'}[key] }   ({others})")
        if place % 3 == 0:
            what = "output" if side == "forward" else "input gradient"
            panel.set_ylabel(f"{side}: {what}{' / lr' * (stage == 'step')}")
            if zero:
                panel.set_title(f"0 for {', '.join(zero)}", fontsize=7.5, color=GREY)
    for row in (axes[:3], axes[3:]):
        _share_y(row)
    handles = [Line2D([], [], color=c, marker=m, ls=s, mfc="none", label=label) for label, (c, m, s) in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    figure.suptitle(f"Root mean square of what the adapter adds, {title}", fontsize=10, x=0.01, ha="left")
    return figure


def _curve(panel: Axes, fit: Mapping[str, Any], moment: str, key: str, about: Mapping[str, Any], look: Look) -> bool:
    """Draw one method's curve where its moment is above 0; return whether it was drawn."""
    fixed = {"r": _middle(about), "m": about["centre"], "n": about["centre"]}
    points = sorted(
        (row[key], row[moment]) for row in fit["rows"] if all(row[k] == v for k, v in fixed.items() if k != key)
    )
    if not points or min(value for _, value in points) <= 0:
        return False
    colour, marker, style = look
    panel.loglog(*zip(*points, strict=True), color=colour, marker=marker, ls=style, mfc="none", lw=1.3)
    return True


def _middle(about: Mapping[str, Any]) -> int:
    return sorted(about["ranks"])[len(about["ranks"]) // 2]


def _axis(panel: Axes, values: Sequence[int]) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(FixedLocator(values))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _share_y(row: Sequence[Axes]) -> None:
    """Give the panels of a row one range, so that slopes and sizes can be compared across them."""
    limits = [panel.get_ylim() for panel in row]
    for panel in row:
        panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
