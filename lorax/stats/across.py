"""Several tasks in one row: the difference of two methods over tasks and seeds, and average ranks.

Scores of seed s on task t differ by d_st = theta + u_s + v_t + e_st: seeds and tasks are both drawn, so theta speaks
of tasks like these (`effects.crossed` with tasks in place of items; Satterthwaite's degrees of freedom, about T - 1
where tasks differ). The spread of seeds alone would speak of these tasks only; that interval stands beside it. Where
tasks differ as much as seeds do, it covers theta in 62 % where 95 % is promised. Two tasks leave the interval wide.

Under estimand `method` each end covers every combination of rates, one a task: the bound of `best_rate` over products.
Ranks: arms are ranked by score in every task and seed (1 is best, ties share), averaged over both, with an interval by
the same model. The rows are one family of their own, corrected over arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
from scipy import stats as sps

from lorax.stats import effects
from lorax.stats.best_rate import BestRate
from lorax.stats.comparisons import refused_equivalence, stack
from lorax.stats.measures.improvement import improvement, over_tasks
from lorax.stats.pairing import Cells, Runs, contrast, grid, shared_seeds
from lorax.stats.result import Across
from lorax.stats.rule import VERDICTS, Verdicts, decide

MOST_COMBINATIONS = 60_000
"""Of rates, one a task: beyond it no interval is computed (ten tasks with three rates each have 59,049)."""


def over_all_tasks(
    cells: Cells,
    tasks: Sequence[str],
    arms: Sequence[str],
    reference: str,
    margin: float,
    alpha: float,
    claim: str,
    procedure: str,
) -> tuple[Across, ...]:
    """Return one row for each arm that has runs on every task, the reference included; none with less than two tasks.

    Args:
        cells: from `pairing.cells_of`.
        tasks: planned tasks.
        arms: planned arms in display order.
        reference: one of them.
        margin: of equivalence or non-inferiority.
        alpha: chance of any false verdict among these rows.
        claim: name in `rule.CLAIMS`.
        procedure: of the study, for what it refuses.
    """
    if len(tasks) < 2:
        return ()
    whole = [arm for arm in arms if all((arm, task) in cells for task in tasks)]
    if reference not in whole or len(whole) < 2:
        return ()
    others = [arm for arm in whole if arm != reference]
    runs = {arm: [cells[arm, task] for task in tasks] for arm in whole}
    evidence = [_evidence(runs[arm], runs[reference]) for arm in others]
    verdicts = decide(stack(evidence), margin, alpha, len(arms) - 1, claim)
    ranks = _ranks(runs, alpha)
    rows = []
    for arm in whole:
        row = Across(arm, len(tasks), len(_seeds([runs[arm], runs[reference]])), *ranks[arm])
        if arm in others:
            row = _compared(row, others.index(arm), verdicts, runs[arm], runs[reference], alpha)
        if row.verdict in ("equivalent", "non_inferior"):
            contrasts = (contrast(cells, task, arm, reference, procedure) for task in tasks)
            reasons = ((c.task, refused_equivalence(c, margin)) for c in contrasts)
            refused = "; ".join(f"{task}: {reason}" for task, reason in reasons if reason)
            row = replace(row, verdict="undecided", refused=refused) if refused else row
        rows.append(row)
    return tuple(rows)


def _compared(
    row: Across, at: int, v: Verdicts, arm: Sequence[Runs], reference: Sequence[Runs], alpha: float
) -> Across:
    if not row.seeds:
        return replace(row, verdict="undecided", refused="no seed that all tasks share")
    here = effects.paired_t(_at_picks(arm, reference).mean(axis=-1), _resolution([arm, reference]))
    here_low, here_high = here.interval(1 - alpha)
    parts = [
        improvement(_values(a), _values(b), 1 - alpha, certain=(None in a.at_best, None in b.at_best))
        for a, b in zip(arm, reference, strict=True)
    ]
    return replace(
        row,
        verdict=VERDICTS[v.code[at]],
        estimate=float(here.estimate),
        low=float(v.low[at]),
        high=float(v.high[at]),
        confidence=float(v.confidence[at]),
        p_adjusted=float(v.p_adjusted[at]),
        here_low=float(here_low),
        here_high=float(here_high),
        improvement=over_tasks(parts),
    )


def _evidence(arm: Sequence[Runs], reference: Sequence[Runs]) -> BestRate:
    """Return the evidence of one arm over all tasks; nothing is known without a shared seed."""
    seeds, resolution = _seeds([arm, reference]), _resolution([arm, reference])
    counts = [prod(len(runs.rates) for runs in side) for side in (arm, reference)]
    if not seeds or max(counts) > MOST_COMBINATIONS:
        unknown = effects.Effect(np.zeros(1), np.full(1, np.inf), np.ones(1))
        return BestRate(np.asarray(0.0), unknown, unknown)
    ours, theirs = ([_scores(runs, seeds) for runs in side] for side in (arm, reference))
    below = _combined([a[runs.best] - b for a, b, runs in zip(ours, theirs, arm, strict=True)], resolution)
    above = _combined([a - b[runs.best] for a, b, runs in zip(ours, theirs, reference, strict=True)], resolution)
    estimate = effects.crossed(_at_picks(arm, reference), resolution).estimate
    return BestRate(
        np.asarray(estimate),
        _open(below, any(runs.at_edge for runs in reference)),
        _open(above, any(runs.at_edge for runs in arm)),
    )


def _combined(by_task: Sequence[effects.Array], resolution: float) -> effects.Effect:
    """Return the effect of every combination of rates, one a task.

    Args:
        by_task: (rates, seeds) differences of each task.
        resolution: least sd of a seed's difference over all tasks.
    """
    picks = np.array(list(product(*(range(len(of_task)) for of_task in by_task))))
    d = np.stack([of_task[picks[:, at]] for at, of_task in enumerate(by_task)], axis=-1)
    return effects.crossed(d, resolution)


def _open(effect: effects.Effect, at_edge: bool) -> effects.Effect:
    return effects.Effect(effect.estimate, np.full_like(effect.se, np.inf), effect.df) if at_edge else effect


def _ranks(runs: dict[str, list[Runs]], alpha: float) -> dict[str, tuple[float, float, float]]:
    """Return each arm's average rank over tasks and seeds with its interval, cut at 1 and the number of arms."""
    seeds = _seeds(list(runs.values()))
    if not seeds:
        return dict.fromkeys(runs, (np.nan, 1.0, float(len(runs))))
    scores = np.array([[_scores(of, seeds)[of.best] for of in side] for side in runs.values()])  # arms, tasks, seeds
    ranks = np.moveaxis(sps.rankdata(-scores, axis=0), 1, 2)
    found = effects.crossed(ranks, 1 / ranks.shape[-1])
    low, high = found.interval(1 - alpha)
    ends = zip(found.estimate, np.maximum(low, 1), np.minimum(high, len(runs)), strict=True)
    return {arm: (float(rank), float(a), float(b)) for arm, (rank, a, b) in zip(runs, ends, strict=True)}


def _at_picks(arm: Sequence[Runs], reference: Sequence[Runs]) -> effects.Array:
    """Return (seeds, tasks) differences at both picks."""
    seeds = _seeds([arm, reference])
    columns = [_scores(a, seeds)[a.best] - _scores(b, seeds)[b.best] for a, b in zip(arm, reference, strict=True)]
    return np.stack(columns, axis=-1)


def _seeds(sides: Sequence[Sequence[Runs]]) -> tuple[int, ...]:
    """Return the seeds that all runs share; those without a seed meet every one."""
    return shared_seeds([runs for side in sides for runs in side])


def _scores(runs: Runs, seeds: Sequence[int]) -> effects.Array:
    return np.array([[run.score for run in row] for row in grid(runs, seeds)])


def _values(runs: Runs) -> list[float]:
    return [run.score for run in runs.at_best.values()]


def _resolution(sides: Sequence[Sequence[Runs]]) -> float:
    """Return the least sd of a seed's difference: one item in one of the tasks."""
    items = min(run.n_items for side in sides for runs in side for of in runs.by_rate for run in of.values())
    return 1 / (items * len(sides[0])) if items else 0.0
