"""Looking after every seed: the e-value against its integral, its level at any look, and what is never revoked."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate
from scipy import stats as sps

from lorax.stats.courses import Course, Family, verdicts
from lorax.stats.rule import VERDICTS
from lorax.stats.sequential import FIRST, Side, critical, decided, earliest, log_e, look, needed


@pytest.mark.parametrize("n, t, g", [(3, 0.5, 4.0), (5, 2.0, 4.0), (8, -3.0, 1.0), (20, 4.0, 0.25)])
def test_the_e_value_is_the_mixture_of_t_likelihoods(n, t, g):
    """Noncentral t densities integrated over N(0, g) effect sizes, over the central density."""

    def weighed(size):
        return sps.nct.pdf(t, n - 1, size * math.sqrt(n)) * sps.norm.pdf(size, 0, math.sqrt(g))

    reach = 8 * math.sqrt(g)
    mixture = integrate.quad(weighed, -reach, reach, limit=400, points=[0.0, t / math.sqrt(n)])[0]
    expected = math.log(mixture / sps.t.pdf(t, n - 1))
    assert float(log_e(t / math.sqrt(n), 1.0, n, g)) == pytest.approx(expected, abs=1e-5)


def test_it_stays_below_one_over_alpha_at_all_looks_together():
    d = np.random.default_rng(0).normal(size=(4000, 30))
    highest = np.max([log_e(d[:, :n].mean(axis=1), d[:, :n].var(axis=1, ddof=1), n) for n in range(FIRST, 31)], axis=0)
    assert (highest >= math.log(1 / 0.05)).mean() <= 0.05
    late = np.abs(d[:, :30].mean(axis=1)) / (d.std(axis=1, ddof=1) / math.sqrt(30))
    looks = [
        np.abs(d[:, :n].mean(axis=1)) / (d[:, :n].std(axis=1, ddof=1) / math.sqrt(n)) > sps.t.ppf(0.975, n - 1)
        for n in range(FIRST, 31)
    ]
    assert (late > sps.t.ppf(0.975, 29)).mean() < 0.07
    assert np.any(looks, axis=0).mean() > 0.2, "repeated t tests do not"


def test_the_evidence_is_the_largest_over_fixed_rates_of_the_least_over_the_others():
    g = np.random.default_rng(1)
    arm, reference, fixed = (
        g.normal(0.4, 1, (3, 6)),
        g.normal(0, 1, (3, 6)),
        (np.array([True, True, False]), [True] * 3),
    )
    seen = look(Side.of(arm, fixed[0]), Side.of(reference, fixed[1]))
    e, up = np.zeros((3, 3)), np.zeros((3, 3), dtype=bool)
    for r in range(3):
        for q in range(3):
            d = arm[r] - reference[q]
            e[r, q], up[r, q] = math.exp(log_e(d.mean(), d.var(ddof=1), 6)), d.mean() > 0
    assert math.exp(seen.better) == pytest.approx(np.where(up, e, 0).min(axis=1)[:2].max() / 2)
    assert math.exp(seen.worse) == pytest.approx(np.where(~up, e, 0).min(axis=0).max() / 3)
    mirrored = look(Side.of(reference, fixed[1]), Side.of(arm, fixed[0]))
    assert (mirrored.better, mirrored.worse) == pytest.approx((seen.worse, seen.better))


def test_nothing_is_said_that_rests_on_a_best_at_the_edge():
    arm, reference = np.full((1, 6), 1.0) + np.arange(6) / 100, np.zeros((1, 6))
    assert look(Side.of(arm), Side.of(reference)).better > 5
    seen = look(Side.of(arm), Side.of(reference, at_edge=True), 0.01)
    assert seen.better == -math.inf and seen.bounds(3.0)[0] == -math.inf and np.isfinite(seen.bounds(3.0)[1])
    seen = look(Side.of(arm, at_edge=True), Side.of(reference), 0.01)
    assert seen.worse == -math.inf and seen.bounds(3.0)[1] == math.inf and np.isfinite(seen.bounds(3.0)[0])


@pytest.mark.parametrize("seeds, rates", [(5, 1), (9, 3), (30, 2)])
def test_the_interval_is_what_the_e_values_do_not_reject(seeds, rates):
    """Shifting the arm by an end brings the log e-value to the level; the interval excludes 0 where it exceeds it."""
    g = np.random.default_rng(seeds)
    arm, reference, level = g.normal(2, 1, (rates, seeds)), g.normal(0, 1, (rates, seeds)), 2.0
    seen = look(Side.of(arm), Side.of(reference))
    low, high = seen.bounds(level)
    assert look(Side.of(arm - low), Side.of(reference)).better == pytest.approx(level)
    assert look(Side.of(arm - high), Side.of(reference)).worse == pytest.approx(level)
    assert (low > 0) == (seen.better > level) and low < high


def test_too_few_seeds_cannot_reach_a_level_and_the_first_that_can_is_said():
    assert earliest(0.05, 11, 3) == 6 and earliest(0.05, 1) == 4
    for family, rates in ((1, 1), (11, 3), (62, 3)):
        n = earliest(0.05, family, rates)
        wanted = needed(0.05, family) + math.log(rates)
        assert float(log_e(1e9, 1.0, n)) > wanted and (n == FIRST or float(log_e(1e9, 1.0, n - 1)) < wanted)
        assert math.isinf(critical(wanted, n - 1)) and np.isfinite(critical(wanted, n))


def simulated(tables, arms=5, rates=3, seeds=25):
    """Yield tables of scores (arms, rates, seeds), peaks in the middle; arm 1 is better and arm 2 worse by 1.5."""
    g = np.random.default_rng(2)
    level = np.array([-1.0, 0.0, -1.0])[:rates, None]
    for _ in range(tables):
        scores = level + 0.7 * g.normal(size=(1, 1, seeds)) + 0.7 * g.normal(size=(arms, rates, seeds))
        scores[1] += 1.5
        scores[2] -= 1.5
        yield scores


def judged(scores, upto=25):
    """All looks of one table, as a family."""
    family = Family(range(1, len(scores)), 0.05)
    for n in range(FIRST, upto + 1):
        sides = [Side.of(of_arm[:, :n]) for of_arm in scores]
        family.add({arm: look(sides[arm], sides[0]) for arm in family.undecided})
    return family


def test_equal_methods_are_never_found_and_different_ones_are_and_stay_found():
    families = [judged(scores) for scores in simulated(60)]
    signs = np.array([[course.sign for course in family.courses.values()] for family in families])
    assert (signs[:, 0] == 1).mean() > 0.9 and (signs[:, 1] == -1).mean() > 0.9
    assert (signs[:, 2:] != 0).any(axis=1).mean() <= 0.05


def test_a_family_decides_as_holms_procedure_on_the_running_maxima_and_revokes_nothing():
    for scores in simulated(8):
        looks = [[look(Side.of(a[:, :n]), Side.of(scores[0][:, :n])) for n in range(FIRST, 26)] for a in scores[1:]]
        whole = decided(*([[getattr(seen, way) for seen in of_arm] for of_arm in looks] for way in ("better", "worse")))
        assert np.all(np.diff(np.abs(whole), axis=-1) >= 0), "nothing is revoked"
        earlier = {}
        for upto in (8, 15, 25):
            courses = judged(scores, upto).courses
            assert [course.sign for course in courses.values()] == whole[:, upto - FIRST].tolist()
            for arm, course in courses.items():
                assert earlier.get(arm, (0, 0)) in ((0, 0), (course.sign, course.decided_after))
                earlier[arm] = course.sign, course.decided_after or 0
        for row, course in zip(whole, courses.values(), strict=True):
            assert (course.decided_after or 0) == (FIRST + int((row != 0).argmax()) if row.any() else 0)


def test_the_sign_is_that_of_the_running_maximum_that_decides():
    """Strong for "better" once, a little for "worse" now; another arm's decision lowers what is needed."""
    k1, k2 = needed(0.05, 2), needed(0.05, 1)
    better = np.array([[k2 + 0.1, -5.0], [0.0, k1 + 1.0]])
    worse = np.array([[-9.0, 0.0], [-9.0, -9.0]])
    assert decided(better, worse).tolist() == [[0, 1], [0, 1]]


def test_verdicts_agree_with_their_p_values_and_intervals():
    for scores in simulated(12):
        family = judged(scores)
        found = verdicts(list(family.courses.values()), 0.05)
        assert np.array_equal(found.code > 0, found.p_adjusted <= 0.05)
        for code, low, high in zip(found.code, found.low, found.high, strict=True):
            assert (low > 0) == (VERDICTS[code] == "better") and (high < 0) == (VERDICTS[code] == "worse")
        course = next(iter(family.courses.values()))
        low, high = course.bounds(needed(0.05, 4))
        assert np.all(low[1:] >= low[:-1]) and np.all(high[1:] <= high[:-1]) and len(low) == len(course.looks)


def test_the_interval_holds_at_all_looks_together():
    g = np.random.default_rng(3)
    misses = 0
    for _ in range(150):
        d = g.normal(0.3, 1, (1, 15))
        course = Course([look(Side.of(d[:, :n]), Side.of(np.zeros((1, n)))) for n in range(FIRST, 16)])
        low, high = course.bounds(needed(0.10, 1))
        misses += low[-1] > 0.3 or high[-1] < 0.3
    assert misses / 150 <= 0.10 and np.isfinite(low[-1] + high[-1])


def test_later_comparisons_need_less_and_a_planned_family_counts():
    """log(2 K / alpha) for the largest of two, log(2 (K - 1) / alpha) for the next."""
    first, next_one = math.log(2 * 2 / 0.05), math.log(2 * 1 / 0.05)
    nothing = np.full((2, 1), -np.inf)
    both = np.array([[first + 0.01], [next_one + 0.01]])
    assert decided(both, nothing).tolist() == [[1], [1]]
    assert decided(np.array([[first - 0.01], [next_one + 0.01]]), nothing).tolist() == [[0], [0]]
    assert decided(both, nothing, family=4).tolist() == [[0], [0]]
    assert decided(nothing, both).tolist() == [[-1], [-1]]
