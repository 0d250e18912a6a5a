"""What training did to the weights, where records measured it: one small panel a quantity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lorax.records import RunRecord
from lorax.studies.figures import GREY, colours, panels, styled
from lorax.studies.rows import flatten, task

TITLES = {
    "cosine_first": "cosine of first step to full gradient",
    "cosine_final": "cosine of final update to full update",
    "captured_r": "gradient energy captured at r",
    "captured_2r": "gradient energy captured at 2r",
    "relative_norm": "||dW|| / ||W0||",
    "effective_rank": "effective rank of dW",
    "intruders": "intruder dimensions",
    "overlap_top": "overlap with top subspace of W0",
    "overlap_bottom": "overlap with bottom subspace of W0",
    "forgetting": "forgetting, change of cross-entropy",
}


def diagnostics_frame(finals: Mapping[str, Sequence[RunRecord]]) -> pd.DataFrame:
    """Return one row a run and measured number: arm, task, seed, quantity (dotted), value.

    Per-layer figures of the initialisation report (`captured`, ...) enter as their mean over layers.

    Args:
        finals: arm -> runs.
    """
    lines = []
    for arm, records in finals.items():
        for record in records:
            found = {f"init {key}": value for key, value in _layer_means(record).items()}
            found |= flatten(record.diagnostics)
            lines += [
                {"arm": arm, "task": task(record), "seed": record.config.get("seed"), "quantity": key,
                 "value": float(value)}
                for key, value in found.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            ]  # fmt: skip
    return pd.DataFrame(lines, columns=["arm", "task", "seed", "quantity", "value"])


@styled
def diagnostics(frame: pd.DataFrame, most: int = 16) -> Figure | None:
    """Draw each measured quantity: arms down, a dot a run, a bar at the mean.

    Quantities that take one value in every run are left out: they tell nothing apart.

    Args:
        frame: from `diagnostics_frame`, of one task.
        most: at most so many panels.
    """
    spread = frame.groupby("quantity", sort=False)["value"].agg(lambda values: np.ptp(values.to_numpy()))
    names = [name for name in spread.index if spread[name] > 0][:most]
    if not names:
        return None
    arms = list(dict.fromkeys(frame["arm"]))
    looks, columns = colours(arms), 2
    rows = math.ceil(len(names) / columns)
    figure, axes = panels(rows, height=0.24 * len(arms) + 0.75, width=7.6, columns=columns)
    for place, (panel, name) in enumerate(zip(axes, names, strict=False)):
        part = frame[frame["quantity"] == name]
        for at, arm in enumerate(reversed(arms)):
            values = part.loc[part["arm"] == arm, "value"].to_numpy()
            if len(values):
                panel.plot(
                    values, np.full(len(values), at), "o", color=looks[arm][0], alpha=0.45, ms=4, mew=0
                )
                panel.plot(values.mean(), at, "|", color=looks[arm][0], ms=11, mew=2)
            else:
                panel.text(0.01, at, "not measured", color=GREY, fontsize=7, va="center",
                           transform=panel.get_yaxis_transform())  # fmt: skip
        panel.set_yticks(range(len(arms)), list(reversed(arms)) if place % columns == 0 else [""] * len(arms))
        panel.set_ylim(-0.6, len(arms) - 0.4)
        panel.set_title(TITLES.get(name, name.replace("_", " ")), fontsize=9)
        panel.tick_params(axis="x", labelsize=8)
    for panel in axes[len(names) :]:
        panel.set_visible(False)
    return figure


def _layer_means(record: RunRecord) -> dict[str, float]:
    """Return the mean over layers of each per-layer number in the initialisation report."""
    layers = record.init_report.get("layers")
    if not isinstance(layers, dict):
        return {}
    table = pd.DataFrame([entry for entry in layers.values() if isinstance(entry, dict)])
    numbers = table.select_dtypes("number")
    return {str(key): float(numbers[key].mean()) for key in numbers if numbers[key].notna().any()}
