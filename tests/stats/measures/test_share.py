"""Recovered share: Fieller's set is what scipy's t test does not reject, also where it is no interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sps

from lorax.stats.measures.share import recovered


def cases():
    random = np.random.default_rng(0)
    yield "interval", random.normal(0.55, 0.01, 6), random.normal(0.6, 0.01, 6), 0.2
    yield "outside", random.normal(0.5, 0.005, 5), np.array([0.19, 0.22, 0.25, 0.2, 0.21]), 0.2
    yield "all", random.normal(0.2, 0.02, 5), random.normal(0.2, 0.02, 5), 0.2
    common = random.normal(0, 0.03, 8)
    yield "interval", 0.5 + common + random.normal(0, 0.005, 8), 0.6 + common, random.normal(0.3, 0.01, 8)


@pytest.mark.parametrize(("kind", "arm", "full", "base"), cases())
def test_the_set_is_what_the_paired_t_test_does_not_reject(kind, arm, full, base):
    found = recovered(arm, full, base)
    assert found.value == pytest.approx((arm.mean() - np.mean(base)) / (full.mean() - np.mean(base)))
    assert kind == ("outside" if found.outside else "interval" if found.bounded else "all")
    shares = np.concatenate([np.linspace(-40, 40, 41), np.linspace(-1, 2, 121)]) + 1e-4
    kept = [sps.ttest_1samp((arm - base) - share * (full - base), 0.0).pvalue >= 0.05 for share in shares]
    assert [found.holds(share) for share in shares] == kept
    assert found.holds(found.value)


def test_it_covers_where_full_is_barely_better_than_the_base():
    random, tables, n, truth, hits, unbounded = np.random.default_rng(1), 2000, 5, 0.8, 0, 0
    for _ in range(tables):
        full, arm = random.normal(0.02, 0.02, n), random.normal(0.02 * truth, 0.02, n)
        found = recovered(arm, full, 0.0)
        hits += found.holds(truth)
        unbounded += not found.bounded
    assert abs(hits / tables - 0.95) < 3 * (0.05 * 0.95 / tables) ** 0.5
    assert unbounded / tables > 0.2, "an interval that is always bounded could not cover"


def test_few_seeds_and_no_spread():
    assert not recovered([0.5], [0.6], 0.2).bounded
    equal = recovered([0.5] * 4, [0.6] * 4, 0.2, resolution=1 / 200)
    assert equal.value == pytest.approx(0.75) and equal.low < 0.75 < equal.high
