"""The best learning rate by validation: the mean score, then the loss, then the lower rate."""

from __future__ import annotations

import math

import numpy as np

from lorax.stats.selection import best_first, pick


def test_the_best_mean_wins_whatever_the_loss():
    assert pick([[0.5, 0.6], [0.7, 0.6]], [[0.1, 0.1], [9.0, 9.0]]) == 1


def test_equal_means_are_decided_by_loss_then_by_the_lower_rate():
    scores = [[0.225, 0.225], [0.215, 0.235]]  # the second mean is 0.22499999999999998
    assert pick(scores, [[1.3, 1.3], [1.1, 1.1]]) == 1
    assert pick(scores, [[1.1, 1.1], [1.3, 1.3]]) == pick(scores, np.ones((2, 2))) == 0


def test_one_diverged_seed_puts_a_rate_last():
    assert best_first([[0.2, 0.2], [-math.inf, 0.9], [0.3, 0.3]], np.ones((3, 2))).tolist() == [2, 0, 1]


def test_stacks_of_arms_are_ranked_one_by_one():
    scores = np.random.default_rng(0).integers(0, 3, (4, 5, 6, 2)) / 10
    losses = np.random.default_rng(1).integers(0, 3, (4, 5, 6, 2)) / 10
    order = best_first(scores, losses)
    assert order.shape == (4, 5, 6) and np.array_equal(pick(scores, losses), order[..., 0])
    assert all(np.array_equal(order[at], best_first(scores[at], losses[at])) for at in np.ndindex(4, 5))
