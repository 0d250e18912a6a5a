"""Non-inferiority: one-sided, against scipy's t test; its level over a family; under both estimands."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sps

from lorax.errors import UserError
from lorax.stats import power
from lorax.stats.effects import paired_t
from lorax.stats.judge import judge, would_need
from lorax.stats.result import Final
from lorax.stats.rule import VERDICTS, decide

NON_INFERIOR = VERDICTS.index("non_inferior")


def verdicts(differences, margin, claim="non_inferior"):
    return decide(paired_t(differences), margin, claim=claim)


def test_one_comparison_is_the_one_sided_t_test_at_half_of_alpha():
    """Where neither 0 nor a better arm is shown, the verdict is that of scipy's test of "at most -margin"."""
    d = np.random.default_rng(1).normal(-0.002, 0.02, size=(400, 1, 8))
    found = verdicts(d, 0.02)
    p = sps.ttest_1samp(d[:, 0] + 0.02, 0.0, axis=-1, alternative="greater").pvalue
    np.testing.assert_allclose(found.p_non_inferior_adjusted[:, 0], np.minimum(2 * p, 1))
    shown = p <= 0.025
    assert shown.any() and (~shown).any()
    better = found.code[:, 0] == VERDICTS.index("better")
    assert np.array_equal((found.code[:, 0] == NON_INFERIOR) | better, shown)
    assert not (found.code == VERDICTS.index("equivalent")).any()
    assert np.array_equal(better, sps.ttest_1samp(d[:, 0], 0.0, axis=-1, alternative="greater").pvalue <= 0.025)


def test_the_family_keeps_its_level_where_some_are_inferior_and_some_are_equal():
    """Of 6 arms, half lie exactly the margin below, half are equal to the reference, all share its noise."""
    random, tables = np.random.default_rng(2), 4000
    truth = np.array([-1.0, -1.0, -1.0, 0.0, 0.0, 0.0])
    d = truth[:, None] + random.normal(size=(tables, 6, 8)) * 0.5 + random.normal(size=(tables, 1, 8)) * 0.5
    code = verdicts(d, 1.0).code
    better, worse = (code == VERDICTS.index(name) for name in ("better", "worse"))
    false = np.where(truth < 0, better | (code == NON_INFERIOR), better | worse).any(axis=-1).mean()
    assert false <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tables)
    assert ((code == NON_INFERIOR) & (truth < 0)).any(axis=-1).mean() > 0.005, "the boundary is hit at all"


def finals(arm, scores, rates=None):
    if rates is None:
        return [Final(arm, "t", seed, score, 500) for seed, score in enumerate(scores)]
    return [
        Final(arm, "t", seed, score + shift, 500, lr=rate, validation=score + shift)
        for rate, shift in rates.items()
        for seed, score in enumerate(scores)
    ]


NOISE = (0.001, -0.002, 0.003, -0.001, 0.002, 0.0)


@pytest.mark.parametrize("estimand", ["rate", "method"])
def test_a_slightly_lower_arm_is_non_inferior_not_equivalent_and_a_lower_one_is_worse(estimand):
    rates = {1e-4: -0.01, 1e-3: 0.0, 1e-2: -0.01} if estimand == "method" else None
    runs = finals("lora", [0.6 + 0.01 * (seed % 3) for seed in range(6)], rates)
    for arm, shift in (("near", -0.006), ("low", -0.06), ("high", 0.05)):
        runs += finals(arm, [0.6 + 0.01 * (s % 3) + shift + e for s, e in enumerate(NOISE)], rates)
    said = {}
    for claim in ("difference", "non_inferior"):
        result = judge(runs, reference="lora", margin=0.02, estimand=estimand, claim=claim)
        said[claim] = [c.verdict for c in result.comparisons]
        p = [c.p_non_inferior_adjusted for c in result.comparisons]
        assert p == [None] * 3 if claim == "difference" else p[0] < 0.05 < p[1]
    assert said == {
        "difference": ["equivalent", "worse", "better"],
        "non_inferior": ["non_inferior", "worse", "better"],
    }


def test_what_equivalence_is_refused_for_non_inferiority_is_too():
    runs = finals("lora", [0.01] * 6) + finals("near", [0.008, 0.01, 0.009, 0.01, 0.01, 0.009])
    (c,) = judge(runs, reference="lora", margin=0.02, claim="non_inferior").comparisons
    assert c.verdict == "undecided" and "floor" in c.refused
    few = finals("lora", [0.5, 0.51, 0.5]) + finals("near", [0.5, 0.51, 0.501])
    (c,) = judge(few, reference="lora", margin=0.02, claim="non_inferior").comparisons
    assert c.verdict == "undecided" and "3 seeds" in c.refused


def test_an_unknown_claim_is_named():
    with pytest.raises(UserError, match="claim=noninferior.*non_inferior"):
        judge(finals("lora", [0.5, 0.6]), reference="lora", margin=0.02, claim="noninferior")


def test_power_agrees_with_simulation_and_seeds_are_counted_for_the_claim():
    d = np.random.default_rng(3).normal(-0.3, 1.0, size=(4000, 1, 12))
    code = decide(paired_t(d), 1.0, claim="non_inferior").code[:, 0]
    better, worse, aim = power.verdict_probabilities(-0.3, 1.0, 12, 0.05, 1.0, "non_inferior")
    assert abs(np.isin(code, (NON_INFERIOR, VERDICTS.index("better"))).mean() - aim) < 0.02
    assert abs((code == VERDICTS.index("better")).mean() - better) < 0.02
    assert abs((code == VERDICTS.index("worse")).mean() - worse) < 0.02
    scores = [0.5 + 0.02 * (-1) ** s for s in range(6)]
    wide = finals("lora", [0.5] * 6) + finals("wide", scores)
    result = judge(wide, reference="lora", margin=0.02, claim="non_inferior")
    need = would_need(result, result.comparisons[0])
    assert need.verdict == "non-inferior" and need.seeds > 6
    assert need.seeds <= would_need(judge(wide, reference="lora", margin=0.02), result.comparisons[0]).seeds
