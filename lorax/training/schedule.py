"""Learning-rate schedules: what the rate is multiplied by at each step."""

from __future__ import annotations

import math

from lorax.errors import UserError, near

SCHEDULES = ("cosine", "linear", "constant")


def factor(step: int, steps: int, schedule: str = "cosine", warmup: float = 0.0) -> float:
    """Return what the learning rate is multiplied by at one step.

        w = round(warmup * steps);  (step + 1) / w  while step < w
        then, with p = (step - w) / (steps - w):  (1 + cos(pi p)) / 2  |  1 - p  |  1

    No step has rate 0: the warm-up starts at 1 / w, and the first step after it has factor 1.

    Args:
        step: 0 ... steps - 1.
        steps: optimiser steps of the run.
        schedule: cosine | linear | constant.
        warmup: share of the steps in which the rate rises, in [0, 1).

    Raises:
        UserError: an unknown schedule, with the near misses.

    Examples:
        >>> [round(factor(step, 4, "linear", 0.5), 2) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule={schedule}: {near(schedule, SCHEDULES)}")
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(steps - rising, 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if schedule == "linear" else 1.0
