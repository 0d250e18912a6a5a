"""Looking after every seed: the e-value against its integral, its level at any look, and what is never revoked."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate
from scipy import stats as sps

from lorax.stats.sequential import FIRST, decided, evidence, log_e


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


def test_the_evidence_is_a_mean_over_own_rates_of_the_least_over_the_others():
    g = np.random.default_rng(1)
    arm, reference = g.normal(0.4, 1, (2, 6)), g.normal(0, 1, (3, 6))
    better, worse = evidence(arm, reference)
    assert better.shape == worse.shape == (6 - FIRST + 1,)
    for look, n in enumerate(range(FIRST, 7)):
        e = np.zeros((2, 3))
        up = np.zeros((2, 3), dtype=bool)
        for r in range(2):
            for q in range(3):
                d = arm[r, :n] - reference[q, :n]
                e[r, q], up[r, q] = math.exp(log_e(d.mean(), d.var(ddof=1), n)), d.mean() > 0
        assert math.exp(better[look]) == pytest.approx(np.where(up, e, 0).min(axis=1).mean())
        assert math.exp(worse[look]) == pytest.approx(np.where(~up, e, 0).min(axis=0).mean())


def test_equal_methods_are_never_found_and_different_ones_are_and_stay_found():
    g = np.random.default_rng(2)
    level = np.array([-1.0, 0.0, -1.0])[:, None]
    common = g.normal(size=(200, 1, 1, 25))
    scores = level + 0.7 * common + 0.7 * g.normal(size=(200, 5, 3, 25))
    scores[:, 1] += 1.5
    scores[:, 2] -= 1.5
    found = decided(*evidence(scores[:, 1:], scores[:, :1]))
    last = found[..., -1]
    assert (last[:, 0] == 1).mean() > 0.9 and (last[:, 1] == -1).mean() > 0.9
    assert (found[:, 2:] != 0).any(axis=(1, 2)).mean() <= 0.05
    assert np.all(np.abs(np.diff(np.abs(found), axis=-1)[found[..., :-1] != 0]) == 0), "nothing is revoked"
    swapped = decided(*evidence(scores[:, 1:], scores[:, :1])[::-1])
    assert np.array_equal(swapped, -found)


def test_later_comparisons_need_less_and_a_planned_family_counts():
    """log(2 K / alpha) for the largest of two, log(2 (K - 1) / alpha) for the next."""
    first, next_one = math.log(2 * 2 / 0.05), math.log(2 * 1 / 0.05)
    nothing = np.full((2, 1), -np.inf)
    both = np.array([[first + 0.01], [next_one + 0.01]])
    assert decided(both, nothing).tolist() == [[1], [1]]
    assert decided(np.array([[first - 0.01], [next_one + 0.01]]), nothing).tolist() == [[0], [0]]
    assert decided(both, nothing, family=4).tolist() == [[0], [0]]
    assert decided(nothing, both).tolist() == [[-1], [-1]]
