from __future__ import annotations

import math

import pytest

from lorax.reports.frames.learning_rates import selection, winner_flips
from lorax.stats.selection import Trial


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


def test_more_validation_items_make_the_choice_surer():
    runs = trials("a", {1e-4: [0.60, 0.60], 1e-3: [0.62, 0.62]})
    few, many = selection(runs, 50), selection(runs, 5000)
    assert few.stability < many.stability and few.regret > many.regret


def test_winner_flips_with_the_rate():
    both = trials("lora", {1e-4: [0.4, 0.4], 1e-3: [0.7, 0.7]}) + trials("pissa", {1e-4: [0.6, 0.6], 1e-3: [0.2, 0.2]})
    low, high = winner_flips(both, "lora")
    assert (low.winner, high.winner) == ("pissa", "lora")
    assert low.gap == pytest.approx(0.2) and high.gap == 0
