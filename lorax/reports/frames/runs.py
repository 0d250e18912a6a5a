"""What final runs gave: smoothed training curves, steps to a loss, agreement item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lorax.records import RunRecord


def loss_curves(records: Sequence[RunRecord]) -> np.ndarray:
    """Return (runs, steps) training loss, smoothed over a twentieth of the run; null where a run ended.

    Args:
        records: runs of one arm on one task.
    """
    lines = [[entry.get("loss", np.nan) for entry in record.curve] for record in records if record.curve]
    length = max((len(line) for line in lines), default=0)
    table = np.full((len(lines), length), np.nan)
    for row, line in zip(table, lines, strict=True):
        row[: len(line)] = [np.nan if value is None else value for value in line]
    window = max(1, length // 20)
    # A trailing mean: if the loss at a step included later steps, the number of steps to a loss would be too small.
    return pd.DataFrame(table.T).rolling(window, min_periods=1).mean().to_numpy().T


def steps_to(curves: np.ndarray, loss: float) -> list[int | None]:
    """Return, per run, the first step (from 1) at which the smoothed loss is at most `loss`, or None."""
    reached = curves <= loss
    return [int(row.argmax()) + 1 if row.any() else None for row in reached]


def agreement(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> pd.DataFrame:
    """Return, for each two arms, the share of items on which two runs agree (both right or both wrong).

    Averaged over pairs of runs with different seeds, also for an arm with itself: more agreement than that
    cannot be expected of two arms, because retraining alone changes as many answers.

    Args:
        scores: arm -> one mapping per seed, item -> score in 0..1 (right from 0.5 up); seeds are in the same
            order in every arm.
    """
    arms = list(scores)
    table = pd.DataFrame(np.nan, index=arms, columns=arms)
    for i, first in enumerate(arms):
        for second in arms[i:]:
            shares = [
                np.mean([(a[item] >= 0.5) == (b[item] >= 0.5) for item in common])
                for s, a in enumerate(scores[first])
                for t, b in enumerate(scores[second])
                if (s != t or len(scores[first]) == 1 or len(scores[second]) == 1)
                and (first != second or s != t)
                and (common := a.keys() & b.keys())
            ]
            table.loc[first, second] = table.loc[second, first] = np.mean(shares) if shares else np.nan
    return table
