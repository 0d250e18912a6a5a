"""Learning rates: how firm a choice is, and who leads where all arms use one rate."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lorax.reports.frames.learning_rates import curve, means_along, selection, stretches
from lorax.stats.selection import Trial, pick


def trials(arm: str, scores: dict[float, list[float]]) -> list[Trial]:
    return [
        Trial(arm, "t", lr, seed, score, 1 - score if math.isfinite(score) else math.inf, None)
        for lr, values in scores.items()
        for seed, score in enumerate(values)
    ]


def test_a_clear_best_is_always_chosen_and_close_ones_share():
    clear = selection(trials("a", {1e-4: [0.2, 0.21], 1e-3: [0.8, 0.82], 1e-2: [-math.inf, 0.8]}), 300)
    assert clear.frequency[1e-2] <= 0.3 and clear.chosen == 1e-3  # no resample with the diverged run takes it
    clear = selection(trials("a", {1e-4: [0.2, 0.21], 1e-3: [0.8, 0.82]}), 300)
    assert clear.chosen == 1e-3 and clear.stability == 1 and clear.regret == 0
    close = selection(trials("a", {1e-4: [0.6, 0.64], 1e-3: [0.61, 0.63], 1e-2: [0.1, 0.1]}), 300)
    assert sum(close.frequency.values()) == pytest.approx(1) and close.frequency[1e-2] == 0
    assert 0.3 < close.frequency[1e-4] < 0.7 and close.regret == 0


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_rates_that_all_score_alike_are_told_apart_by_their_losses_as_the_choice_is(score):
    runs = [Trial("a", "t", lr, seed, score, loss, None) for lr, loss in ((1e-4, 3.0), (1e-3, 1.0), (1e-2, 2.0))
            for seed in range(2)]  # fmt: skip
    found = selection(runs, 24)
    assert found.chosen == 1e-3 and found.stability == 1 and found.regret == 0


def test_more_validation_items_make_the_choice_surer():
    runs = trials("a", {1e-4: [0.60, 0.60], 1e-3: [0.62, 0.62]})
    few, many = selection(runs, 50), selection(runs, 5000)
    assert few.stability < many.stability and few.regret > many.regret


def frame(**arms):
    """Tuning runs; arms as {name: {lr: [scores]}}."""
    lines = [
        {"arm": arm, "task": "words", "lr": lr, "seed": seed, "score": score}
        for arm, points in arms.items()
        for lr, scores in points.items()
        for seed, score in enumerate(scores)
    ]
    return pd.DataFrame(lines).astype({"score": float})


def test_the_winner_changes_where_the_curves_cross():
    """Two straight lines in log(lr) that cross at 1e-3, and a stretch that only one arm covers."""
    parts = stretches(frame(a={1e-4: [0.6], 1e-2: [0.2]}, b={1e-4: [0.2], 1e-2: [0.6], 1: [0.9]}))
    assert [part.winner for part in parts] == ["a", "b"]
    assert parts[0].high == pytest.approx(1e-3, rel=0.05) and parts[1].high == pytest.approx(1e-2, rel=0.06)
    assert parts[0].gap == pytest.approx(0.4) and parts[0].runner_up == "b"
    assert parts[0].high == pytest.approx(parts[1].low), "neighbouring stretches meet"
    assert not stretches(frame(a={1e-4: [0.6]}))


def test_means_are_known_where_an_arm_was_run_and_straight_in_between():
    rates, means = means_along(frame(a={1e-4: [0.2], 1e-2: [0.6]}, b={1e-3: [0.5, 0.7], 1e-2: [0.1, 0.3]}), steps=5)
    np.testing.assert_allclose(rates, [1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2])
    np.testing.assert_allclose(means["a"], [0.2, 0.3, 0.4, 0.5, 0.6])
    np.testing.assert_allclose(means["b"], [np.nan, np.nan, 0.6, 0.4, 0.2])


def test_a_rate_at_which_a_seed_diverged_has_no_mean():
    points = curve(frame(a={1e-3: [0.5, 0.7], 1e-2: [0.9, np.nan]}))
    assert points["mean"].tolist()[:1] == [0.6] and points["mean"].isna().tolist() == [False, True]
    assert not stretches(frame(a={1e-3: [np.nan], 1e-2: [np.nan]}, b={1e-3: [0.1], 1e-2: [0.2]}))


def test_means_that_are_equal_on_paper_tie_and_the_loss_decides():
    scores = [[0.225, 0.225], [0.215, 0.235]]  # the second mean is 0.22499999999999998
    assert pick(scores, [[1.3, 1.3], [1.1, 1.1]]) == 1 and pick(scores, [[1.1, 1.1], [1.3, 1.3]]) == 0
