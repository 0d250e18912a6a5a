"""What a design can show: probabilities, detectable effects and needs agree with simulation."""

from __future__ import annotations

import numpy as np
import pytest

from lorax.stats import effects, power
from lorax.stats.rule import VERDICTS, decide


def simulated(effect: float, sd: float, n: int, margin: float, family: int) -> dict[str, float]:
    d = effect + sd * np.random.default_rng(0).standard_normal((20_000, 1, n))
    code = decide(effects.paired_t(d), margin, family=family).code
    return {name: float(np.mean(code == at)) for at, name in enumerate(VERDICTS)}


@pytest.mark.parametrize("effect,margin", [(0.0, 0.03), (0.02, 0.03), (0.03, 0.005), (-0.03, 0.02)])
def test_probabilities_are_those_of_the_verdicts(effect, margin):
    shares = simulated(effect, 0.01, 6, margin, 4)
    promised = power.verdict_probabilities(effect, 0.01, 6, 0.05 / 4, margin)
    assert promised == pytest.approx([shares["better"], shares["worse"], shares["equivalent"]], abs=0.012)


@pytest.mark.parametrize("n,margin", [(3, 0.001), (6, 0.001), (6, 0.03)])
def test_detectable_effect_is_called_better_four_times_in_five(n, margin):
    effect = power.detectable(0.01, n, 0.05 / 8, margin)
    assert simulated(effect, 0.01, n, margin, 8)["better"] == pytest.approx(0.8, abs=0.015)


def test_design_says_what_it_cannot_do():
    one = power.design(family=8, n_seeds=1, n_items=1000, sd=0.01, margin=0.01)
    assert "no verdict is possible" in one.sentences()[0] and one.mde == float("inf")
    vague = power.design(family=36, n_seeds=3, n_items=100, sd=0.05, margin=0.01, room=0.3)
    assert not vague.can_differ and not vague.can_equal
    assert "cannot reach any verdict" in vague.sentences()[-1]
    fine = power.design(family=2, n_seeds=10, n_items=1000, sd=0.004, margin=0.02)
    assert fine.can_differ and fine.can_equal and fine.attainable_p < 1e-6


def test_typical_sd_is_median_unbiased_and_ignores_one_arm_in_trouble():
    d = np.random.default_rng(1).normal(0, 0.01, (4000, 9, 4))
    d[:, 0] *= 50
    effect = effects.paired_t(d)
    assert np.median(power.typical_sd(effect.se, 4, effect.df)) == pytest.approx(0.01, rel=0.1)


def test_items_help_only_with_the_spread_they_make():
    settings = {"n_seeds": 5, "n_items": 500, "level": 0.01, "margin": 0.001}
    assert power.need(0.02, 0.02, **settings, item_noise=0.019).items > 500
    assert power.need(0.02, 0.02, **settings, item_noise=0.001).items is None
    assert power.need(0.0, 0.02, **settings | {"margin": 0.01}).verdict == "equivalent"
    assert power.need(1e-6, 0.02, **settings).seeds is None


def test_what_is_needed_is_more_than_there_is():
    """Spread is one item's worth at least, as in the verdict; present seeds have already left it undecided."""
    needed = power.need(0.0, 0.0, 4, 64, 0.025, 0.02, item_noise=0.0)
    assert needed.seeds > 4 and (needed.items is None or needed.items > 64)
