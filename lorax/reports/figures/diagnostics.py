"""What training did to the weights, where it was measured: a small panel for each quantity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from lorax.reports.figures.style import GREY, colours, panels, styled
from lorax.reports.frames.diagnostics import common_median

TITLES = {
    "cosine_first": "cosine of first SGD step to -gradient",
    "cosine_first_adam": "cosine of first Adam step to -gradient",
    "reach": "best cosine any first step could have",
    "cosine_first_adam_full": "cosine of first Adam step to full's",
    "cosine_final": "cosine of final update to full's final update",
    "cosine_final_gradient": "cosine of final update to -gradient",
    "captured_r": "gradient energy in best rank r",
    "captured_2r": "gradient energy in best rank 2r",
    "relative_norm": "||dW|| / ||W0||",
    "effective_rank": "effective rank of dW",
    "intruders": "intruder dimensions a layer",
    "intruder_cosine": "least likeness of a leading vector to W0's",
    "overlap_top": "share of dW in W0's top subspace",
    "overlap_bottom": "share of dW in W0's bottom subspace",
    "forgetting": "forgetting, nats a token on other text",
}
"""The quantities that are drawn, in this order, with the titles of their panels."""
MARKS = {
    "cosine_first": {"optimum_r": "rank r", "optimum_2r": "2r"},
    "overlap_top": {"overlap_chance": "chance"},
    "overlap_bottom": {"overlap_chance": "chance"},
}
"""Panel -> other quantities drawn in it as a dashed line, and their names; only if all arms have the same value."""
TO_ONE = frozenset(name for name in TITLES if "cosine" in name) | {"reach"}
"""The axis of these ends at 1, so that panels can be compared."""
FROM_ZERO = frozenset(TITLES) - {"effective_rank", "intruder_cosine", "forgetting"}
"""The axis of these starts at 0 or below."""


@styled
def diagnostics(frame: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure | None:
    """Draw each measured quantity: arms down, one dot per run, a bar at the mean.

    Args:
        frame: from `diagnostics_frame`, of one task.
        arms: all arms of the study.
    """
    return _grid(frame, arms, lambda values: float(values.mean()), spread=0.0)


@styled
def layers(frame: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure | None:
    """Draw each quantity layer by layer: arms down, one dot per layer and run, a bar at the median.

    Args:
        frame: from `layer_frame`, of one task.
        arms: all arms of the study.
    """
    return _grid(frame, arms, lambda values: float(np.median(values)), spread=0.28)


def _grid(
    frame: pd.DataFrame, arms: Sequence[str] | None, middle: Callable[[np.ndarray], float], spread: float
) -> Figure | None:
    names = [name for name in TITLES if (frame["quantity"] == name).any() and not _shown_as_mark(frame, name)]
    if not names:
        return None
    present = [arm for arm in arms or () if (frame["arm"] == arm).any()] or list(dict.fromkeys(frame["arm"]))
    looks, columns = colours(arms or present), 2
    rows = math.ceil(len(names) / columns)
    figure, axes = panels(rows, height=0.2 * len(present) + 0.75, width=7.6, columns=columns)
    for place, (panel, name) in enumerate(zip(axes, names, strict=False)):
        values = {arm: _values(frame, arm, name) for arm in present}
        _axis(panel, name, np.concatenate(list(values.values())))
        for at, arm in enumerate(reversed(present)):
            _strip(panel, values[arm], at, looks[arm][0], middle, spread)
        _mark(panel, frame, MARKS.get(name, {}))
        panel.set_yticks(range(len(present)), list(reversed(present)) if place % columns == 0 else [""] * len(present))
        panel.set_ylim(-0.6, len(present) - 0.4)
        panel.set_title(TITLES[name], fontsize=9)
        panel.tick_params(axis="x", labelsize=8)
    for panel in axes[len(names) :]:
        panel.set_visible(False)
    return figure


def _strip(
    panel: Axes, values: np.ndarray, at: int, colour: str, middle: Callable[[np.ndarray], float], spread: float
) -> None:
    """Draw one arm's dots, spread up and down so that they do not hide each other, and its bar."""
    if not len(values):
        panel.text(0.01, at, "no value", color=GREY, fontsize=7, va="center",
                   transform=panel.get_yaxis_transform())  # fmt: skip
        return
    heights = at + spread * (2 * ((np.arange(len(values)) * 0.618) % 1) - 1) if spread else np.full(len(values), at)
    size, alpha = (2.5, 0.35) if spread else (4, 0.45)
    panel.plot(values, heights, "o", color=colour, alpha=alpha, ms=size, mew=0)
    panel.plot(middle(values), at, "|", color=colour, ms=11, mew=2)


def _mark(panel: Axes, frame: pd.DataFrame, marks: Mapping[str, str]) -> None:
    """Draw dashed lines at the medians of other quantities, and name them above the panel."""
    values = {text: value for name, text in marks.items() if (value := common_median(frame, name)) is not None}
    for value in values.values():
        panel.axvline(value, color=GREY, lw=0.9, ls=(0, (4, 3)), zorder=1)
    if values:
        panel.set_title(f"dashed: {', '.join(values)}", loc="right", fontsize=7, color=GREY)


def _axis(panel: Axes, name: str, values: np.ndarray) -> None:
    """Set the axis: with 0 and with 1 where these are the bounds; logarithmic for sizes that differ twentyfold."""
    low, high = values.min(), values.max()
    if name in ("relative_norm", "effective_rank") and low > 0 and high / low > 20:
        panel.set_xscale("log")
        panel.set_xlim(low / 1.3, high * 1.3)
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=12))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        return
    if name in FROM_ZERO:
        low, high = min(0.0, low), max(high, 1e-3 if name != "intruders" else 1.0)
    if name in TO_ONE:
        high = max(high, 1.0)
    gap = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    panel.set_xlim(low - gap, high + gap)
    panel.xaxis.set_major_locator(MaxNLocator(6))


def _shown_as_mark(frame: pd.DataFrame, name: str) -> bool:
    """Return whether a captured energy is a dashed line in the first panel already: all arms have the same."""
    return (
        name.startswith("captured_") and common_median(frame, f"optimum_{name.removeprefix('captured_')}") is not None
    )


def _values(frame: pd.DataFrame, arm: str, name: str) -> np.ndarray:
    return frame.loc[(frame["arm"] == arm) & (frame["quantity"] == name), "value"].to_numpy()
