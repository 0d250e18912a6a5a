"""How fast the training loss falls: steps to a loss, loss at a budget of steps, loss at equal seconds.

    steps to a loss   the loss that every run of the reference reaches. A run that has not reached it by its last step
                      N counts N: the mean of min(steps, N), a restricted mean (Royston and Parmar 2013). N is the same
                      for all runs, so it is a plain mean, and its difference between paired seeds a paired t; it is
                      the mean of the steps themselves only where every run arrives.
    loss at a budget  after half of the steps, and after all.
    at equal seconds  both arms at the time at which the faster one has ended: initialisation and steps at the pace of
                      the solo probes in the records. The slower arm is read in the middle of its schedule of rates.

Losses are those of training batches, as `runs.loss_curves` smooths them; paired runs saw the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lorax.records import RunRecord
from lorax.reports.frames.measures import CONFIDENCE, Measured
from lorax.reports.frames.runs import loss_curves, steps_to
from lorax.stats.effects import paired_t
from lorax.studies.study import Study

Curves = Mapping[int, np.ndarray]
"""Seed -> smoothed loss of every step; null where the run had ended."""


def speeds(study: Study) -> list[Measured]:
    """Return all measures of this module, arms in the study's order; nothing where the reference has no curve."""
    lines = []
    for task in study.spec.tasks:
        curves = {arm: curves_of(study.finals.get((task, arm), {})) for arm in study.spec.labels}
        reference = curves[study.spec.reference]
        if not reference:
            continue
        goal = goal_of(reference)
        for arm, of_arm in curves.items():
            if of_arm:
                lines += _steps(task, arm, of_arm, reference, goal, arm == study.spec.reference)
                lines += _at_budgets(task, arm, of_arm, reference, arm == study.spec.reference)
            if of_arm and arm != study.spec.reference:
                lines += _at_equal_seconds(study, task, arm, of_arm, reference)
    return lines


def curves_of(runs: Mapping[int | None, RunRecord]) -> dict[int, np.ndarray]:
    """Return seed -> smoothed loss curve, of the runs that have one."""
    kept = {seed: run for seed, run in runs.items() if seed is not None and run.curve}
    return dict(zip(kept, loss_curves(list(kept.values())), strict=True))


def goal_of(reference: Curves) -> float | None:
    """Return the lowest loss that every run of the reference reaches; None where one has no loss at all."""
    lowest = [float(np.nanmin(curve)) if np.isfinite(curve).any() else math.nan for curve in reference.values()]
    return max(lowest) if lowest and all(map(math.isfinite, lowest)) else None


def goals(study: Study) -> dict[str, float]:
    """Return task -> the loss to which steps are counted, where there is one."""
    found = {task: goal_of(curves_of(study.finals.get((task, study.spec.reference), {}))) for task in study.spec.tasks}
    return {task: goal for task, goal in found.items() if goal is not None}


def seconds_of(cost: RunRecord | None) -> tuple[float, float] | None:
    """Return seconds of initialisation and of one step, from a solo probe; None where they were not measured."""
    if cost is None:
        return None
    init, step = cost.costs.get("init_seconds"), cost.costs.get("step_ms")
    return None if init is None or not step else (float(init), float(step) / 1e3)


def _steps(task: str, arm: str, ours: Curves, theirs: Curves, goal: float | None, alone: bool) -> list[Measured]:
    if goal is None:
        return []
    last = max(len(curve) for curve in (*ours.values(), *theirs.values()))

    def steps(curves: Curves) -> dict[int, float]:
        reached = steps_to(np.array(list(curves.values())), goal)
        return {seed: float(last if at is None else at) for seed, at in zip(curves, reached, strict=True)}

    mine, reference = steps(ours), steps(theirs)
    never = sum(not (curve <= goal).any() for curve in ours.values())
    note = "" if not never else "never" if never == len(ours) else f"{never} of {len(ours)} never"
    lines = [_mean(task, arm, "steps_to_loss", list(mine.values()), "steps", note, 1.0)]
    if not alone:
        lines += _difference(task, arm, "steps_to_loss_difference", mine, reference, "steps", note, 1.0)
    return lines


def _at_budgets(task: str, arm: str, ours: Curves, theirs: Curves, alone: bool) -> list[Measured]:
    last = max(len(curve) for curve in (*ours.values(), *theirs.values()))
    lines = []
    for name, step in (("half", max(1, last // 2)), ("all", last)):
        mine, reference = (_at(curves, step) for curves in (ours, theirs))
        note = _without(mine, "step", step)
        lines.append(_mean(task, arm, f"loss_at_{name}_steps", list(mine.values()), "loss", note))
        if not alone:
            lines += _difference(task, arm, f"loss_at_{name}_steps_difference", mine, reference, "loss", note)
    return lines


def _at_equal_seconds(study: Study, task: str, arm: str, ours: Curves, theirs: Curves) -> list[Measured]:
    pace, other = (seconds_of(study.costs.get((task, label))) for label in (arm, study.spec.reference))
    if pace is None or other is None:
        return []
    lengths = [max(len(curve) for curve in curves.values()) for curves in (ours, theirs)]
    both = list(zip((pace, other), lengths, strict=True))
    budget = min(init + step * n for (init, step), n in both)
    steps = [min(n, int((budget - init) / step + 1e-9)) for (init, step), n in both]
    if min(steps) < 1:
        return []
    mine, reference = (_at(curves, step) for curves, step in zip((ours, theirs), steps, strict=True))
    note = f"after {budget:.3g} s: step {steps[0]} against {steps[1]}"
    return _difference(task, arm, "loss_at_equal_seconds_difference", mine, reference, "loss", note)


def _at(curves: Curves, step: int) -> dict[int, float]:
    """Return seed -> loss after a step; nan where the run had ended."""
    return {seed: float(curve[step - 1]) if step <= len(curve) else math.nan for seed, curve in curves.items()}


def _without(values: Mapping[int, float], word: str, step: int) -> str:
    ended = sum(not math.isfinite(value) for value in values.values())
    return f"{ended} of {len(values)} have no loss at {word} {step}" if ended else ""


def _mean(
    task: str, arm: str, measure: str, values: Sequence[float], unit: str, note: str, resolution: float = 0.0
) -> Measured:
    effect = paired_t(values, resolution)
    low, high = effect.interval(CONFIDENCE)
    return Measured(task, arm, measure, float(effect.estimate), float(low), float(high), CONFIDENCE, unit, note)


def _difference(
    task: str,
    arm: str,
    measure: str,
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    unit: str,
    note: str,
    resolution: float = 0.0,
) -> list[Measured]:
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return []
    return [_mean(task, arm, measure, [ours[seed] - theirs[seed] for seed in shared], unit, note, resolution)]
