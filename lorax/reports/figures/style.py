"""How every figure looks: palette, axes, labels at the curves, and PNG and SVG files."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.typing import ColorType

from lorax.records import write_atomic

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Okabe and Ito (2008): told apart under every common colour blindness; yellow is too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C510A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")
GREY = "#6B6B6B"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.hashsalt": "lorax",  # ids, and so files, are the same each time
    "svg.fonttype": "path",
}


LONGEST_NAME = 34
"""Letters of a line beside a panel: with longer lines the layout has no room left for the panel and gives up."""

Look = tuple[str, str, str]
"""Colour, marker and line style."""


def colours(arms: Sequence[str]) -> dict[str, Look]:
    """Return each arm's look; beyond eight arms the colours start again with another marker and line style.

    Examples:
        >>> colours(["lora", "pissa"])["pissa"]
        ('#D55E00', 's', '-')
    """
    styles = ("-", "--", ":", "-.")
    return {
        arm: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], styles[i // len(PALETTE) % len(styles)])
        for i, arm in enumerate(arms)
    }


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a drawing function draw under `STYLE`; matplotlib's own settings stay as they are."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    return drawn


def panels(rows: int, height: float = 2.6, width: float = 7.2, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of `rows` x `columns` axes, each `height` inches high, `width` inches in all."""
    engine = ConstrainedLayoutEngine(hspace=0.08, wspace=0.06)
    figure = Figure(figsize=(width, height * rows + 0.3), layout=engine)
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `<folder>/<name>.png` and `.svg`, each whole or not at all; return the paths."""
    paths = []
    with matplotlib.rc_context(STYLE):
        for kind, options in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, facecolor="white", **options)
            paths.append(folder / f"{name}.{kind}")
            write_atomic(paths[-1], buffer.getvalue())
            figure.set_layout_engine("none")  # laid out once; positions are fractions of the figure
    return paths


def rate_axis(axes: Axes) -> None:
    """Make the x axis, of learning rates, logarithmic, with ticks at 1, 2, 5 per decade as plain `2e-4`."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1.0,) if np.log10(high / low) > 3 else (1.0, 3.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e"))
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def per_cent(axes: Axes, axis: str = "y") -> None:
    """Show fractions in per cent, without the sign (the label says it)."""
    getattr(axes, f"{axis}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], size: float = 8.5) -> None:
    """Write each curve's name right of the axes, in its colour, spread so that no two overlap.

    Call it when limits are final. A thin line leads from the curve's end to its name.

    Args:
        axes: where the curves are.
        ends: (x, y, name, colour) of each curve's last point, data coordinates.
        size: font size in points.
    """
    ends = [end for end in ends if np.all(np.isfinite(end[:2]))]
    if not ends:
        return
    axes.get_xlim(), axes.get_ylim()  # matplotlib computes limits when they are asked for; transData does not ask
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    names = [folded(end[2]) for end in ends]
    gap = (1 + max(name.count("\n") for name in names)) * size * 1.25 / 72 / size_of(axes)[1]
    placed = spread([_fraction(axes, *ends[i][:2])[1] for i in order], gap, 0.0, 1.0)
    for i, y in zip(order, placed, strict=True):
        x0, y0, _, colour = ends[i]
        x, y0 = _fraction(axes, x0, y0)
        axes.plot([x, 1.025], [y0, y], color=colour, lw=0.6, alpha=0.6, transform=axes.transAxes, clip_on=False)
        axes.text(1.03, y, names[i], color=colour, fontsize=size, va="center", transform=axes.transAxes, clip_on=False)


def folded(name: str, lines: int = 3) -> str:
    """Return a name with no line above `LONGEST_NAME` letters, each of its lines cut after `lines` new ones.

    Examples:
        >>> folded("lora")
        'lora'
    """
    fold = functools.partial(textwrap.fill, width=LONGEST_NAME, max_lines=lines, placeholder=" ...")
    return "\n".join(fold(line, break_on_hyphens=False) for line in name.split("\n"))


def ink(colour: ColorType) -> str:
    """Return black or white, whichever is readable on a colour.

    Examples:
        >>> ink("#0072B2"), ink("#E69F00")
        ('white', 'black')
    """
    red, green, blue = to_rgb(colour)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "black"


def size_of(axes: Axes) -> tuple[float, float]:
    """Return an estimate of the axes' width and height in inches, without computing the layout."""
    figure, place = axes.figure, axes.get_subplotspec()
    assert isinstance(figure, Figure) and place is not None, "axes come from `panels`"
    width, height = figure.get_size_inches()
    grid = place.get_gridspec()
    return 0.7 * width / grid.ncols, 0.75 * height / grid.nrows


def legend_right(axes: Axes, looks: Mapping[str, Look], extra: Mapping[str, str] | None = None) -> None:
    """List arms, and dashed lines (`extra`: name -> colour), right of the axes in their colours."""
    handles = [Line2D([], [], color=c, marker=m, ls=s, label=folded(arm)) for arm, (c, m, s) in looks.items()]
    handles += [Line2D([], [], color=c, ls=(0, (4, 3)), lw=1, label=name) for name, c in (extra or {}).items()]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, fontsize=8.5,
                labelcolor="linecolor", handlelength=2.6)  # fmt: skip


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move sorted positions as little as needed so that neighbours are `gap` apart, within bounds.

    Examples:
        >>> [round(y, 2) for y in spread([0.5, 0.5], 0.1, 0, 1)]
        [0.45, 0.55]
    """
    merged: list[tuple[float, int]] = []
    for value in wanted:
        merged.append((min(max(value, low), high), 1))
        while len(merged) > 1 and _top(merged[-2], gap) + gap > _bottom(merged[-1], gap) + 1e-12:
            (c1, n1), (c2, n2) = merged[-2:]
            merged[-2:] = [((c1 * n1 + c2 * n2) / (n1 + n2), n1 + n2)]
            half = (merged[-1][1] - 1) / 2 * gap
            centre_now = min(max(merged[-1][0], low + half), max(high - half, low + half))
            merged[-1] = (centre_now, merged[-1][1])
    return [centre + (k - (n - 1) / 2) * gap for centre, n in merged for k in range(n)]


def _top(group: tuple[float, int], gap: float) -> float:
    return group[0] + (group[1] - 1) / 2 * gap


def _bottom(group: tuple[float, int], gap: float) -> float:
    return group[0] - (group[1] - 1) / 2 * gap


def _fraction(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Return a data point in fractions of the axes; a later layout does not change them."""
    across, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    return float(across), float(up)
