"""Effects, intervals and p-values: the textbook ones, on arrays of tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sps
from statsmodels.stats.multitest import multipletests

from lorax.stats import effects


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0.01, 0.02, shape)


def test_paired_t_is_the_textbook_test():
    d = draw(5, 6)
    effect = effects.paired_t(d)
    oracle = sps.ttest_1samp(d, 0.0, axis=-1)
    assert np.allclose(effect.p_zero(), oracle.pvalue)
    low, high = oracle.confidence_interval(0.9)
    assert np.allclose(effect.interval(0.9), (low, high))


def test_interval_and_p_values_are_one_procedure():
    effect = effects.paired_t(draw(200, 5))
    low, high = effect.interval(0.99)
    assert np.array_equal((low > 0) | (high < 0), effect.p_zero() < 0.01)
    inside = (low > -0.05) & (high < 0.05)
    assert inside.any() and np.array_equal(inside, effect.p_margin(0.05) < 0.005)


def test_one_seed_or_no_spread_says_nothing():
    for effect in (effects.paired_t([[0.3]]), effects.paired_t([[0.3, 0.3, 0.3]]), effects.crossed(np.ones((1, 9)))):
        assert np.all(effect.p_zero() == 1) and np.all(np.isinf(effect.interval()))


def test_spread_below_one_item_is_not_believed():
    effect = effects.paired_t([0.01, 0.01, 0.01], resolution=1 / 200)
    assert effect.se == pytest.approx(1 / 200 / np.sqrt(3))


def test_crossed_without_item_effects_is_the_paired_t():
    by_seed = draw(6)
    effect = effects.crossed(np.repeat(by_seed[:, None], 50, axis=1))
    assert effect.se == pytest.approx(float(effects.paired_t(by_seed).se)) and effect.df == pytest.approx(5)


def test_crossed_estimates_the_variance_of_seeds_items_and_rest():
    g = np.random.default_rng(1)
    d = 0.1 * g.normal(size=(400, 8, 1)) + 0.2 * g.normal(size=(400, 1, 30)) + 0.3 * g.normal(size=(400, 8, 30))
    truth = 0.1**2 / 8 + 0.2**2 / 30 + 0.3**2 / 240
    assert np.mean(effects.crossed(d).se ** 2) == pytest.approx(truth, rel=0.05)


def test_holm_agrees_with_statsmodels_family_by_family():
    p = np.random.default_rng(2).uniform(0, 0.05, (4, 7))
    assert np.array_equal(effects.holm(p), [multipletests(row, method="holm")[1] for row in p])


def test_step_down_never_falls_and_keeps_the_order_of_p():
    adjusted = effects.step_down([[0.03, 0.01, 0.9]], lambda rising: rising * [3, 1, 2])
    assert adjusted.tolist() == [[0.03, 0.03, 1.0]]


def test_mcnemar_counts_the_items_that_one_side_alone_solves():
    a, b = np.random.default_rng(3).integers(0, 2, (2, 60))
    gained, lost, p = effects.mcnemar(a, b)
    assert (gained, lost) == (np.sum(a > b), np.sum(a < b))
    assert p == pytest.approx(sps.binomtest(gained, gained + lost, 0.5).pvalue)
    assert effects.mcnemar(a, a) == (0, 0, 1.0)


def test_mcnemar_of_graded_scores_is_the_sign_test():
    a, b = np.random.default_rng(4).random((2, 40)).round(1)
    gained, lost, p = effects.mcnemar(a / 2, b / 2)  # none is above a half
    assert gained + lost == np.sum(a != b) < 40
    assert p == pytest.approx(sps.binomtest(int(np.sum(a > b)), gained + lost, 0.5).pvalue)


def test_intervals_and_tests_of_rates_are_the_textbook_ones_and_stay_within_bounds():
    z = (0.5 - 0.6) / np.sqrt((170 / 300) * (130 / 300) * (1 / 100 + 1 / 200))
    assert effects.two_proportions(0.5, 100, 0.6, 200) == pytest.approx(2 * sps.norm.sf(abs(z)))
    assert effects.two_proportions(0.0, 10, 0.0, 20) == effects.two_proportions(1.0, 10, 1.0, 20) == 1.0
    assert effects.wilson(0.3, 50) == pytest.approx(sps.binomtest(15, 50).proportion_ci(method="wilson"))
    assert 0 <= effects.wilson(0.0, 50)[0] < 1e-15 and 1 - 1e-15 < effects.wilson(1.0, 50)[1] <= 1
    assert effects.wilson(0.37, 50, 0.99)[0] < effects.wilson(0.37, 50)[0] < 0.37


def test_two_level_bootstrap_covers_both_levels():
    g = np.random.default_rng(4)
    d = 0.02 * g.normal(size=(6, 1)) + 0.05 * g.normal(size=(1, 300)) + 0.1 * g.normal(size=(6, 300))
    low, high = effects.bootstrap(d)
    width = (high - low) / 2 / 1.96
    assert low < d.mean() < high
    assert width**2 == pytest.approx(d.mean(axis=1).var() / 6 + d.mean(axis=0).var() / 300 + 0.1**2 / 1800, rel=0.25)
