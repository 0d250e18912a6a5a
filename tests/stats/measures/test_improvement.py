"""Probability of improvement: the statistic is scipy's, the interval holds its level where a bootstrap would not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sps

from lorax.stats.effects import wilson
from lorax.stats.measures.improvement import improvement, over_tasks


def test_the_estimate_is_mann_whitney_s_statistic():
    random = np.random.default_rng(0)
    for _ in range(20):
        x, y = random.integers(0, 9, 6) / 8, random.integers(0, 9, 8) / 8
        u = sps.mannwhitneyu(x, y).statistic / (len(x) * len(y))
        share, low, high = improvement(x, y)
        assert share == pytest.approx(u) and 0 <= low <= share <= high <= 1
        other, below, above = improvement(y, x)
        assert (other, below, above) == pytest.approx((1 - share, 1 - high, 1 - low), abs=1e-6)


@pytest.mark.parametrize("truth", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_the_interval_covers_with_seeds_of_their_own_and_shared_ones(truth, shared):
    random, n, hits, tables = np.random.default_rng(1), 6, 0, 400
    shift = sps.norm.ppf(truth) * 2**0.5
    for _ in range(tables):
        common = shared**0.5 * random.normal(size=n)
        x, y = (common + (1 - shared) ** 0.5 * random.normal(size=n) for _ in range(2))
        _, low, high = improvement(x + shift, y)
        hits += low <= truth <= high
    assert hits / tables >= 0.95 - 3 * (0.05 * 0.95 / tables) ** 0.5


def test_all_wins_of_few_runs_are_no_certainty():
    share, low, high = improvement([0.7] * 5, [0.6] * 5)
    assert share == high == 1 and 0.55 < low < 0.75
    assert improvement([0.7] * 9, [0.6] * 9)[1] > low
    assert improvement([0.6], [0.7])[:2] == (0, 0)


def test_a_frozen_base_is_no_draw():
    share, low, high = improvement([0.7, 0.5, 0.4, 0.3], [0.6], certain=(False, True))
    assert (share, low, high) == pytest.approx((0.25, *wilson(0.25, 4)))
    assert improvement([0.6], [0.7, 0.5, 0.5, 0.5], certain=(True, False))[0] == 0.75


def test_over_tasks_the_interval_is_narrower_than_one_task_s():
    one = improvement([0.6, 0.7, 0.65, 0.5], [0.5, 0.62, 0.6, 0.55])
    mean, low, high = over_tasks([one] * 4)
    assert mean == pytest.approx(one[0]) and (mean - low) == pytest.approx((one[0] - one[1]) / 2)
    assert high - mean == pytest.approx((one[2] - one[0]) / 2)
