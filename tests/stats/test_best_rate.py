"""The best-rate interval: a readable twin, closed forms, the paired t as its special case, and its level."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy import stats as sps

from lorax.errors import UserError
from lorax.stats import effects
from lorax.stats.best_rate import Window, compare, hidden
from lorax.stats.judge import judge
from lorax.stats.result import Final
from lorax.stats.rule import VERDICTS, decide


def twin(arm, arm_validation, reference, reference_validation, confidence, resolution=0.0):
    """What `compare` computes, one number after another: estimate, low, high, p of no difference, p of the margin 1."""

    def bound(differences, side):
        n = len(differences)
        sd = max(np.std(differences, ddof=1), resolution)
        return np.mean(differences) + side * sps.t.ppf((1 + confidence) / 2, n - 1) * sd / math.sqrt(n)

    def p_above(differences, value):
        sd = max(np.std(differences, ddof=1), resolution)
        return sps.t.sf((np.mean(differences) - value) / (sd / math.sqrt(len(differences))), len(differences) - 1)

    best = max(range(len(arm)), key=lambda r: (round(np.mean(arm_validation[r]), 12), -r))
    other = max(range(len(reference)), key=lambda q: (round(np.mean(reference_validation[q]), 12), -q))
    below = [arm[best] - row for row in reference]
    above = [row - reference[other] for row in arm]
    open_low = len(reference) > 1 and other in (0, len(reference) - 1)
    open_high = len(arm) > 1 and best in (0, len(arm) - 1)
    low = -math.inf if open_low else min(bound(d, -1) for d in below)
    high = math.inf if open_high else max(bound(d, 1) for d in above)
    p_low = {value: 0.5 if open_low else max(p_above(d, value) for d in below) for value in (0.0, -1.0)}
    p_high = {value: 0.5 if open_high else max(p_above(-d, -value) for d in above) for value in (0.0, 1.0)}
    p_zero = min(1.0, 2 * min(p_low[0.0], p_high[0.0]))
    return np.mean(arm[best] - reference[other]), low, high, p_zero, max(p_low[-1.0], p_high[1.0])


def drawn(g, tables=1, rates=3, seeds=6, step=1.0, noise=1.0):
    """Scores around one peak in the middle of the rates: test and validation of the same runs."""
    level = -step * (np.arange(rates) - rates // 2) ** 2
    run = level[:, None] + noise * g.normal(size=(tables, rates, seeds))
    return run + 0.3 * g.normal(size=run.shape), run + 0.5 * g.normal(size=run.shape)


@pytest.mark.parametrize("rates", [(3, 3), (1, 3), (3, 1), (4, 5), (1, 1)])
def test_it_is_its_readable_twin(rates):
    g = np.random.default_rng(0)
    arm, arm_validation = drawn(g, 40, rates[0])
    reference, reference_validation = drawn(g, 40, rates[1])
    windows = Window.of(arm, arm_validation), Window.of(reference, reference_validation)
    evidence = compare(*windows, partial(effects.paired_t, resolution=0.9))
    low, high = evidence.interval(0.99)
    for at in range(40):
        expected = twin(arm[at], arm_validation[at], reference[at], reference_validation[at], 0.99, 0.9)
        found = (evidence.estimate[at], low[at], high[at], evidence.p_zero()[at], evidence.p_margin(1.0)[at])
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_case_that_can_be_worked_out_by_hand():
    """Two seeds, t(0.975, 1) = 12.706: at the picks 0.20 +- 12.706 x 0.01; the reference's other rates lie 0.05 lower
    and 0.05 higher, so the low end is that of the rate that tested best although validation did not pick it."""
    arm = Window.of([[0.69, 0.71]], [[0.7, 0.7]])
    reference = Window.of([[0.45, 0.45], [0.50, 0.50], [0.55, 0.55]], validation=[[0.4, 0.4], [0.6, 0.6], [0.5, 0.5]])
    evidence = compare(arm, reference)
    half = sps.t.ppf(0.975, 1) * 0.01
    assert evidence.estimate == pytest.approx(0.20)
    assert evidence.interval(0.95) == pytest.approx((0.15 - half, 0.20 + half))


def test_with_one_rate_each_it_is_the_paired_t_bit_for_bit():
    g = np.random.default_rng(1)
    arm, reference = g.normal(size=(2, 50, 1, 5))
    evidence = compare(Window.of(arm, arm), Window.of(reference, reference))
    effect = effects.paired_t((arm - reference)[:, 0])
    assert np.array_equal(evidence.interval(0.9), effect.interval(0.9))
    assert np.array_equal(evidence.p_zero(), effect.p_zero()) and np.array_equal(
        evidence.p_margin(0.3), effect.p_margin(0.3)
    )
    ours, theirs = (
        decide(evidence.__class__(evidence.estimate[None], *_rows(evidence)), 0.3),
        decide(effects.Effect(effect.estimate[None], effect.se[None], effect.df[None]), 0.3),
    )
    assert np.array_equal(ours.code, theirs.code) and np.array_equal(ours.low, theirs.low)


def _rows(evidence):
    return [effects.Effect(e.estimate[None], e.se[None], e.df[None]) for e in (evidence.below, evidence.above)]


def test_the_interval_holds_its_estimate_and_decides_as_its_p_value():
    g = np.random.default_rng(2)
    windows = [Window.of(*drawn(g, 300, noise=0.4)) for _ in range(2)]
    evidence = compare(*windows)
    low, high = evidence.interval(0.95)
    assert np.all((low <= evidence.estimate) & (evidence.estimate <= high))
    assert np.array_equal((low > 0) | (high < 0), evidence.p_zero() < 0.05)
    low, high = evidence.interval(0.9)
    inside = (low > -1.5) & (high < 1.5)
    assert inside.any() and np.array_equal(inside, evidence.p_margin(1.5) < 0.05)


def test_at_an_edge_neither_worse_nor_equivalent_and_nothing_beats_such_a_reference():
    flat = np.tile([0.5, 0.51, 0.5, 0.51, 0.5, 0.5], (3, 1))
    validation = {"inside": [0.4, 0.6, 0.5], "edge": [0.4, 0.5, 0.6]}

    def verdict(arm, reference, shift):
        windows = [
            Window.of(scores[None], np.tile(np.array(validation[kind])[:, None], (1, 6))[None])
            for kind, scores in ((arm, flat + shift), (reference, flat[:, ::-1]))
        ]
        return VERDICTS[decide(compare(*windows), margin=0.05).code[0]]

    kinds = [("inside", "inside"), ("edge", "inside"), ("inside", "edge"), ("edge", "edge")]
    found = {kind: [verdict(*kind, shift) for shift in (0.2, 0.0, -0.2)] for kind in kinds}
    assert found["inside", "inside"] == ["better", "equivalent", "worse"]
    assert found["edge", "inside"] == ["better", "undecided", "undecided"]
    assert found["inside", "edge"] == ["undecided", "undecided", "worse"]
    assert found["edge", "edge"] == ["undecided"] * 3


def test_equal_methods_are_seldom_called_different_where_selected_rates_are():
    """Peaks alike, rates picked by noisy validation: reading selected rates as methods breaks 5 %."""
    g = np.random.default_rng(3)
    arms, tables, seeds = 8, 400, 8
    tests, validations = zip(*(drawn(g, tables, seeds=seeds, step=1.0, noise=0.8) for _ in range(arms)), strict=True)
    windows = [Window.of(t, v) for t, v in zip(tests, validations, strict=True)]
    found = []
    for arm in windows[1:]:
        low, high = compare(arm, windows[0]).interval(1 - 0.05 / (arms - 1))
        found.append((low > 0) | (high < 0))
    assert np.any(found, axis=0).mean() < 0.05
    tuned = [np.take_along_axis(t, g.integers(0, 3, (tables, 1, 1)), 1)[:, 0] for t in tests]
    selected = [effects.paired_t(arm - tuned[0]).p_zero() < 0.05 / (arms - 1) for arm in tuned[1:]]
    assert np.any(selected, axis=0).mean() > 0.3


def test_what_the_lattice_can_hide():
    """A parabola with its peak t of a step off the lattice exceeds its best lattice point by c t^2."""
    for t in (0.0, 0.2, -0.45):
        y = -1.5 * (np.arange(3) - 1 - t) ** 2
        estimate, most = hidden(y, 1)
        assert estimate == pytest.approx(1.5 * t * t) and most >= estimate
    assert hidden([0.1, 0.5, 0.4], 1)[1] == pytest.approx(0.4)
    assert hidden([0.5, 0.5, 0.5], 1) == (0.0, 0.0)
    assert hidden([0.6, 0.5, 0.4], 0) == (math.inf, math.inf)


def finals_of(tests, validations, rates, seeds=None):
    seeds = seeds or range(tests.shape[-1])
    return [
        Final(f"a{arm}", "t", seed, float(tests[arm, at, k]), 1000, lr=rate, validation=float(validations[arm, at, k]))
        for arm in range(len(tests))
        for at, rate in enumerate(rates)
        for k, seed in enumerate(seeds)
    ]


@pytest.fixture
def study():
    g = np.random.default_rng(5)
    tests, validations = drawn(g, 5, seeds=6, noise=0.3)
    return 0.5 + 0.02 * (tests + np.array([0, 0, 3, -3, 0.1])[:, None, None]), 0.5 + 0.02 * validations


def test_judge_says_what_the_arrays_say(study):
    """Records in any order, through `judge`, as through the function of arrays."""
    tests, validations = study
    finals = finals_of(tests, validations, (1e-4, 1e-3, 1e-2))
    np.random.default_rng(0).shuffle(finals)
    result = judge(finals, reference="a0", margin=0.03, estimand="method", arms=[f"a{at}" for at in range(5)])
    windows = [Window.of(t, v) for t, v in zip(tests, validations, strict=True)]
    for at, c in enumerate(result.comparisons, start=1):
        low, high = compare(windows[at], windows[0], partial(effects.paired_t, resolution=1e-3)).interval(c.confidence)
        assert (c.low, c.high) == pytest.approx((float(low), float(high)), rel=1e-12)
    assert [c.verdict for c in result.comparisons] == ["equivalent", "better", "worse", "equivalent"]
    row = result.arm("t", "a2")
    assert row.lr == 1e-3 and row.mean == pytest.approx(tests[2, 1].mean()) and list(row.rates) == [1e-4, 1e-3, 1e-2]
    c = result.comparison("t", "a1")
    assert c.spread >= c.sd and result.design.sd >= min(other.sd for other in result.comparisons)


def test_a_frozen_base_has_one_series_and_meets_every_seed(study):
    tests, validations = study
    finals = finals_of(tests[:2], validations[:2], (1e-4, 1e-3, 1e-2)) + [Final("none", "t", None, 0.1, 1000)]
    result = judge(finals, reference="a0", margin=0.02, estimand="method")
    assert result.comparison("t", "none").verdict == "worse" and result.comparison("t", "none").seeds == tuple(range(6))
    assert result.arm("t", "none").lr is None and not result.arm("t", "none").rates


def test_seeds_count_where_every_rate_ran_and_one_rate_twice_is_refused(study):
    tests, validations = study
    finals = finals_of(tests[:2], validations[:2], (1e-4, 1e-3, 1e-2))
    lost = [f for f in finals if (f.arm, f.lr, f.seed) != ("a1", 1e-2, 3)]
    result = judge(lost, reference="a0", margin=0.02, estimand="method")
    assert result.comparisons[0].seeds == (0, 1, 2, 4, 5)
    with pytest.raises(UserError, match=r"arm 'a0', task 't', rate 0.0001: seed 0 occurs twice"):
        judge([*finals, finals[0]], reference="a0", margin=0.02, estimand="method")
    with pytest.raises(UserError, match="no validation score says which is the best"):
        judge([Final("a0", "t", 0, 0.5, 10, lr=lr) for lr in (0.1, 0.2)], reference="a0", margin=0.1, estimand="method")
    with pytest.raises(UserError, match="estimand=methd: did you mean 'method'"):
        judge(finals, reference="a0", margin=0.02, estimand="methd")


def test_a_diverged_rate_is_never_the_pick(study):
    tests, validations = study
    validations = validations.copy()
    validations[1, 1, 2] = -math.inf
    result = judge(
        finals_of(tests[:2], validations[:2], (1e-4, 1e-3, 1e-2)), reference="a0", margin=0.02, estimand="method"
    )
    row, c = result.arm("t", "a1"), result.comparisons[0]
    assert row.lr != 1e-3 and row.at_edge and math.isinf(c.high) and math.isinf(row.high)
    assert "the best rate of a1 is at the edge of what was run" in c.note and math.isinf(c.mde)


def test_crossed_takes_items_of_every_rate(study):
    g = np.random.default_rng(8)
    finals = []
    for arm in ("lora", "pissa"):
        hard = g.uniform(0.3, 0.9, 150)
        for at, rate in enumerate((1e-4, 1e-3, 1e-2)):
            for seed in range(5):
                items = {str(i): float(g.uniform() < p - 0.1 * abs(at - 1)) for i, p in enumerate(hard)}
                score = float(np.mean(list(items.values())))
                finals.append(Final(arm, "t", seed, score, 150, items=items, lr=rate, validation=-abs(at - 1.0)))
    paired, crossed = (
        judge(finals, reference="lora", margin=0.01, estimand="method", procedure=procedure).comparisons[0]
        for procedure in ("paired_t", "crossed")
    )
    assert crossed.estimate == pytest.approx(paired.estimate) and crossed.high - crossed.low > paired.high - paired.low
