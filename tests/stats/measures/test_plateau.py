"""Robustness to the rate: closed form of a triangle, edges, diverged runs, and the interval's coverage."""

from __future__ import annotations

import numpy as np
import pytest

from lorax.stats.measures.plateau import plateau

RATES = [1e-4, 1e-3, 1e-2]


def rows(means, seeds=2):
    return np.repeat(np.array(means, dtype=float)[:, None], seeds, axis=1)


def test_a_triangle_has_the_width_of_similar_triangles():
    """It falls by 10 points a decade to one side, by 20 to the other: one point is 0.1 and 0.05 decades."""
    found = plateau(RATES, rows([0.5, 0.6, 0.4]))
    assert found.width == pytest.approx(0.15) and found.grid == pytest.approx(2) and not found.at_edge
    assert plateau(RATES, rows([0.5, 0.6, 0.4]), drop=0.2).width == pytest.approx(2)
    assert plateau(RATES, rows([0.5, 0.6, 0.4]), drop=0.15).width == pytest.approx(1 + 0.75)
    assert plateau(RATES, rows([0.6, 0.5, 0.6])).width == pytest.approx(0.2), "two peaks: both count"


def test_a_best_at_the_edge_is_at_least():
    found = plateau(RATES, rows([0.6, 0.5, 0.4]))
    assert found.width == pytest.approx(0.1) and found.at_edge
    assert plateau(RATES, rows([0.6, 0.6, 0.6])).width == pytest.approx(2)


def test_rates_where_a_run_diverged_are_outside_and_the_way_to_them():
    scores = rows([0.5, 0.6, 0.6])
    scores[2, 1] = -np.inf
    assert plateau(RATES, scores).width == pytest.approx(0.1)
    nothing = plateau(RATES, np.full((3, 2), -np.inf))
    assert (nothing.width, nothing.high) == pytest.approx((0, 2))


def test_one_seed_knows_nothing():
    found = plateau(RATES, rows([0.5, 0.6, 0.4], seeds=1))
    assert found.low == 0 and found.high == pytest.approx(2)


@pytest.mark.parametrize("means", [(0.50, 0.57, 0.60, 0.595, 0.55), (0.5, 0.6, 0.6, 0.6, 0.5)])
def test_the_interval_covers_the_width_of_the_true_curve(means):
    random, tables = np.random.default_rng(2), 800
    rates = np.logspace(-4, -2, 5)
    truth = plateau(rates, rows(means)).width
    hits, narrow = 0, 0
    for _ in range(tables):
        scores = np.array(means)[:, None] + random.normal(0, 0.004, (5, 3)) + random.normal(0, 0.02, 3)
        found = plateau(rates, scores)
        hits += found.low <= truth + 1e-9 and truth - 1e-9 <= found.high
        narrow += found.high - found.low < 1.5
    assert hits / tables >= 0.95 - 3 * (0.05 * 0.95 / tables) ** 0.5 and narrow / tables > 0.5
