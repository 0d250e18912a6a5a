"""Several tasks in one row: tasks and seeds both drawn, products of rates, ranks; never the spread of seeds alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats as sps

from lorax.stats import across
from lorax.stats.effects import crossed
from lorax.stats.judge import judge
from lorax.stats.result import Final

TASKS = ("a", "b", "c")


def finals(arm, scores, validation=None, items=1000):
    """Scores (tasks, seeds), or (tasks, rates, seeds) where validation (tasks, rates) says which rate is best."""
    if validation is None:
        return [Final(arm, TASKS[t], s, float(x), items) for (t, s), x in np.ndenumerate(scores)]
    return [
        Final(arm, TASKS[t], s, float(x), items, lr=10.0 ** (r - 4), validation=validation[t][r])
        for (t, r, s), x in np.ndenumerate(scores)
    ]


def random_scores(seed, shape, tasks=0.01):
    random = np.random.default_rng(seed)
    shift = tasks * random.normal(size=(shape[0],) + (1,) * (len(shape) - 1))
    return 0.6 + shift + 0.01 * random.normal(size=shape)


def over(runs, **more):
    return {row.arm: row for row in judge(runs, reference="lora", margin=0.02, **more).across}


def test_a_row_is_the_crossed_effect_over_seeds_and_tasks_at_the_family_s_level():
    base, arm, other = (random_scores(seed, (3, 6)) for seed in range(3))
    rows = over(finals("lora", base) + finals("pissa", arm) + finals("svft", other))
    effect = crossed((arm - base).T, 1 / 3000)
    row, (low, high) = rows["pissa"], effect.interval(1 - 0.05 / 2)
    assert (row.estimate, row.low, row.high) == pytest.approx((float(effect.estimate), float(low), float(high)))
    here = sps.ttest_1samp((arm - base).mean(axis=0), 0).confidence_interval(0.95)
    assert (row.here_low, row.here_high) == pytest.approx((here.low, here.high))
    assert (row.tasks, row.seeds) == (3, 6) and rows["lora"].verdict == "" and np.isnan(rows["lora"].estimate)
    each = [sps.mannwhitneyu(a, b).statistic / 36 for a, b in zip(arm, base, strict=True)]
    assert row.improvement[0] == pytest.approx(np.mean(each))


def test_ranks_are_those_of_scipy_and_lie_between_first_and_last():
    scores = {arm: random_scores(seed, (3, 5)) for seed, arm in enumerate(("lora", "pissa", "svft"))}
    rows = over([run for arm, of in scores.items() for run in finals(arm, of)])
    expected = sps.rankdata(-np.array(list(scores.values())), axis=0).mean(axis=(1, 2))
    assert [rows[arm].rank for arm in scores] == pytest.approx(expected)
    assert all(1 <= row.rank_low <= row.rank <= row.rank_high <= 3 for row in rows.values())
    first = over(finals("lora", scores["lora"]) + finals("top", scores["lora"] + 0.1))
    assert first["top"].rank == 1 and first["top"].rank_high < 1.5 and first["lora"].rank == 2


@pytest.mark.parametrize(("tasks", "spread"), [(2, 1.0), (3, 0.0), (3, 1.0), (3, 3.0)])
def test_the_interval_holds_its_level_where_tasks_differ(tasks, spread):
    """Seeds alone would call equal methods different in four of ten tables; the row does in at most one of twenty."""
    random, tables, seeds = np.random.default_rng(4), 4000, 6
    d = spread * random.normal(size=(tables, 1, tasks)) + random.normal(size=(tables, seeds, tasks))
    low, high = crossed(d).interval(0.95)
    assert ((low > 0) | (high < 0)).mean() <= 0.05 + 3 * (0.05 * 0.95 / tables) ** 0.5
    alone = sps.ttest_1samp(d.mean(axis=-1), 0, axis=-1).pvalue
    assert spread != 1.0 or (alone < 0.05).mean() > 0.3


def test_under_method_each_end_covers_every_combination_of_rates():
    validation = {arm: [[0.1, 0.3, 0.2]] * 3 for arm in ("lora", "pissa")}
    scores = {arm: random_scores(seed, (3, 3, 6)) for seed, arm in enumerate(validation)}
    runs = [run for arm, of in scores.items() for run in finals(arm, of, validation[arm])]
    row = over(runs, estimand="method")["pissa"]
    ours, theirs = scores["pissa"], scores["lora"]
    ends = {"low": [], "high": []}
    for rates in product(range(3), repeat=3):
        their = np.stack([theirs[t, r] for t, r in enumerate(rates)])
        our = np.stack([ours[t, r] for t, r in enumerate(rates)])
        ends["low"].append(crossed((ours[:, 1] - their).T, 1 / 3000).interval(0.95)[0])
        ends["high"].append(crossed((our - theirs[:, 1]).T, 1 / 3000).interval(0.95)[1])
    assert (row.low, row.high) == pytest.approx((min(ends["low"]), max(ends["high"])))
    at_edge = [replace(run, validation=1.0) if run.task == "b" and run.lr == 1e-4 and run.arm == "pissa" else run
               for run in runs]  # fmt: skip
    assert over(at_edge, estimand="method")["pissa"].high == np.inf


def test_too_many_combinations_leave_it_open(monkeypatch):
    monkeypatch.setattr(across, "MOST_COMBINATIONS", 8)
    validation = [[0.1, 0.3, 0.2]] * 3
    runs = [run for seed, arm in enumerate(("lora", "pissa"))
            for run in finals(arm, random_scores(seed, (3, 3, 6)), validation)]  # fmt: skip
    row = over(runs, estimand="method")["pissa"]
    assert row.verdict == "undecided" and row.low == -np.inf and np.isfinite(row.estimate)


def test_verdicts_over_tasks_and_what_they_are_refused_for():
    base = random_scores(1, (3, 6), tasks=0)
    near = base + 0.0005 * np.random.default_rng(2).normal(size=base.shape)
    rows = over(finals("lora", base) + finals("near", near) + finals("far", base - 0.2))
    assert (rows["near"].verdict, rows["far"].verdict) == ("equivalent", "worse")
    floor = over(finals("lora", base - 0.59) + finals("near", near - 0.59))["near"]
    assert floor.verdict == "undecided" and floor.refused.startswith(
        "a: both scores are within the margin of the floor"
    )
    one_sided = over(finals("lora", base) + finals("near", near), claim="non_inferior")["near"]
    assert one_sided.verdict == "non_inferior"


def test_a_frozen_base_meets_every_seed_and_an_arm_that_misses_a_task_has_no_row():
    base = random_scores(1, (3, 6))
    none = [Final("none", task, None, 0.2, 1000) for task in TASKS]
    part = [run for run in finals("part", base) if run.task != "b"]
    rows = over(finals("lora", base) + none + part, arms=["lora", "none", "part"])
    assert set(rows) == {"lora", "none"} and rows["none"].verdict == "worse" and rows["none"].rank == 2
    assert judge(finals("lora", base[:1]) + finals("x", base[:1]), reference="lora", margin=0.02).across == ()
    apart = [replace(run, seed=run.seed + 100) if run.task == "b" else run for run in finals("x", base)]
    assert over(finals("lora", base) + apart)["x"].refused == "no seed that all tasks share"
