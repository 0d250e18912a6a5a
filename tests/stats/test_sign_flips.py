"""The exact p of sign flips against scipy's, what is attainable, and its level where a t has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as sps

from lorax.stats.judge import judge
from lorax.stats.result import Final
from lorax.stats.sign_flips import MOST, above, attainable, two_sided


@pytest.mark.parametrize("n", [2, 5, 8, 11])
def test_it_is_scipys_permutation_test(n):
    for seed in range(5):
        d = np.random.default_rng([n, seed]).normal(0.5, 1, n)
        for alternative, p in (("greater", above(d)), ("less", above(-d)), ("two-sided", two_sided(d, d))):
            found = sps.permutation_test(
                (d,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=np.inf,
                alternative=alternative, vectorized=True,
            )  # fmt: skip
            assert p == pytest.approx(found.pvalue)


def test_ties_and_rounding_count_as_equal():
    """Whole items of 500: sums that are the same number in another order."""
    d = np.array([3, 1, -2, 4, 1, 1, 0]) / 500
    every = np.array([[1 if at >> i & 1 else -1 for i in range(7)] for at in range(2**7)]) * np.array(
        [3, 1, -2, 4, 1, 1, 0]
    )
    assert above(d) == (every.sum(axis=1) >= 8).mean() and above(np.zeros(4)) == 1.0


def test_the_smallest_attainable_is_one_flip_on_either_side():
    for n in (3, 6, 20, MOST):
        assert two_sided(np.arange(1.0, n + 1), np.arange(1.0, n + 1)) == attainable(n) == 2.0 ** (1 - n)
    assert math.isnan(above([])) and math.isnan(above(np.ones(MOST + 1)))


def test_several_rates_take_the_largest_and_an_edge_says_nothing():
    best, other = np.array([1.0, 2.0, 3.0]), np.array([1.0, -2.0, 3.0])
    assert two_sided([best, other], [best]) == 2 * above(other) > two_sided([best], [best])
    assert two_sided([best], [best], better=False) == 1.0 and two_sided([-best], [-best], worse=False) == 1.0


def test_it_keeps_its_level_where_differences_are_symmetric_and_not_normal():
    d = np.random.default_rng(0).standard_t(2, (600, 8))
    assert np.mean([two_sided(row, row) <= 0.05 for row in d]) <= 0.065


@pytest.mark.parametrize("estimand", ["rate", "method"])
def test_a_comparison_has_it_and_it_changes_no_verdict(estimand):
    g = np.random.default_rng(1)
    finals = [
        Final(arm, "t", seed, 0.5 + 0.1 * (arm == "b") - 0.05 * (lr == 1) - 0.05 * (lr == 3) + g.normal(0, 0.01), 500,
              lr=float(lr), validation=0.5 - 0.1 * abs(lr - 2), validation_loss=0.0)
        for arm in "ab" for lr in ((1, 2, 3) if estimand == "method" else (2,)) for seed in range(6)
    ]  # fmt: skip
    (c,) = judge(finals, reference="a", margin=0.01, estimand=estimand).comparisons
    assert c.verdict == "better" and c.p_flip == attainable(6)
    (one,) = judge([f for f in finals if f.seed == 0], reference="a", margin=0.01, estimand=estimand).comparisons
    assert one.p_flip == 1.0 and one.verdict == "undecided"
