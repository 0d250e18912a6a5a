"""What training did to the weights, where records measured it: one small panel a quantity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lorax.records import RunRecord
from lorax.studies.figures import GREY, colours, panels, styled
from lorax.studies.rows import task

TITLES = {
    "cosine_first": "cosine of first SGD step to -gradient",
    "cosine_first_adam": "cosine of first Adam step to -gradient",
    "cosine_final": "cosine of final update to full fine-tuning's",
    "cosine_final_gradient": "cosine of final update to -gradient",
    "captured_r": "gradient energy in best rank r",
    "captured_2r": "gradient energy in best rank 2r",
    "relative_norm": "||dW|| / ||W0||",
    "effective_rank": "effective rank of dW",
    "intruders": "intruder dimensions a layer",
    "overlap_top": "share of dW in W0's top subspace",
    "overlap_bottom": "share of dW in W0's bottom subspace",
    "forgetting": "forgetting, nats a token on other text",
}
"""Quantities drawn, in this order; the record's other numbers stay in the record."""


def diagnostics_frame(finals: Mapping[str, Sequence[RunRecord]]) -> pd.DataFrame:
    """Return one row a run and measured number: arm, task, seed, quantity, value.

    The record's headline numbers only (the median over layers); what is kept a layer stays there.

    Args:
        finals: arm -> runs.
    """
    lines = []
    for arm, records in finals.items():
        for record in records:
            lines += [
                {"arm": arm, "task": task(record), "seed": record.config.get("seed"), "quantity": key,
                 "value": float(value)}
                for key, value in record.diagnostics.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            ]  # fmt: skip
    return pd.DataFrame(lines, columns=["arm", "task", "seed", "quantity", "value"])


@styled
def diagnostics(frame: pd.DataFrame, arms: Sequence[str] | None = None) -> Figure | None:
    """Draw each measured quantity: arms down, a dot a run, a bar at the mean.

    Args:
        frame: from `diagnostics_frame`, of one task.
        arms: all arms of the study.
    """
    names = [name for name in TITLES if (frame["quantity"] == name).any()]
    if not names:
        return None
    present = list(dict.fromkeys(frame["arm"]))
    looks, arms, columns = colours(arms or present), present, 2
    rows = math.ceil(len(names) / columns)
    figure, axes = panels(rows, height=0.24 * len(arms) + 0.75, width=7.6, columns=columns)
    for place, (panel, name) in enumerate(zip(axes, names, strict=False)):
        part = frame[frame["quantity"] == name]
        for at, arm in enumerate(reversed(arms)):
            values = part.loc[part["arm"] == arm, "value"].to_numpy()
            if len(values):
                panel.plot(values, np.full(len(values), at), "o", color=looks[arm][0], alpha=0.45, ms=4, mew=0)
                panel.plot(values.mean(), at, "|", color=looks[arm][0], ms=11, mew=2)
            else:
                panel.text(0.01, at, "not measured", color=GREY, fontsize=7, va="center",
                           transform=panel.get_yaxis_transform())  # fmt: skip
        panel.set_yticks(range(len(arms)), list(reversed(arms)) if place % columns == 0 else [""] * len(arms))
        panel.set_ylim(-0.6, len(arms) - 0.4)
        panel.set_title(TITLES[name], fontsize=9)
        panel.tick_params(axis="x", labelsize=8)
    for panel in axes[len(names) :]:
        panel.set_visible(False)
    return figure
