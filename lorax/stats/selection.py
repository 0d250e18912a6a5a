"""Selecting a learning rate from tuning runs: the best mean score on validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorax.records import RunRecord


@dataclass(frozen=True)
class Trial:
    """One tuning run."""

    arm: str
    task: str
    lr: float
    seed: int
    score: float
    """On validation; -inf where the run diverged, so that it is worse than any other."""
    loss: float
    """On validation; inf where the run diverged or none was measured."""
    record: RunRecord


def best_first(scores: ArrayLike, losses: ArrayLike) -> NDArray[np.intp]:
    """Return the rates' indices from best to worst: by mean score, ties by mean loss, then the lower rate.

    Means are compared to twelve digits: 0.225 + 0.225 and 0.215 + 0.235 are equal, although they differ in
    the last bit.

    Args:
        scores: (..., rates, seeds) validation scores, higher is better; -inf where a run diverged.
        losses: (..., rates, seeds) validation losses.

    Returns:
        (..., rates).
    """
    score: NDArray[np.float64] = np.round(np.asarray(scores, dtype=float).mean(axis=-1), 12)
    loss = np.asarray(losses, dtype=float).mean(axis=-1)
    rates = np.broadcast_to(np.arange(score.shape[-1]), score.shape)
    return np.lexsort((rates, loss, -score), axis=-1)


def pick(scores: ArrayLike, losses: ArrayLike) -> NDArray[np.intp]:
    """Return the index of the best rate, (...); arguments as in `best_first`."""
    return best_first(scores, losses)[..., 0]
