"""Verdicts: what their intervals say, corrected over the planned family."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as sps

from lorax.calibration.measure import rules
from lorax.errors import UserError
from lorax.stats import effects, power
from lorax.stats.judge import judge, would_need
from lorax.stats.letters import compact_letters
from lorax.stats.refusals import in_groups
from lorax.stats.result import Final
from lorax.stats.rule import VERDICTS, decide


def runs(arm: str, mean: float, wobble: float = 0.002, seeds: int = 6, task: str = "t", n: int = 1000) -> list[Final]:
    noise = np.random.default_rng([*arm.encode()]).normal(0, wobble, seeds)
    return [Final(arm, task, seed, mean + noise[seed], n) for seed in range(seeds)]


def verdicts(result) -> dict[str, str]:
    return {c.arm: c.verdict for c in result.comparisons}


def test_four_verdicts():
    finals = runs("lora", 0.6) + runs("up", 0.65) + runs("down", 0.5) + runs("same", 0.6) + runs("vague", 0.62, 0.03)
    result = judge(finals, reference="lora", margin=0.02)
    assert verdicts(result) == {"up": "better", "down": "worse", "same": "equivalent", "vague": "undecided"}
    letters = {row.arm: row.letters for row in result.arms}
    assert letters["up"][0] == "a" and letters["lora"] == letters["same"]
    assert set(letters["vague"]) & set(letters["lora"]) and not set(letters["up"]) & set(letters["down"])


def test_inside_the_margin_is_equivalent_even_off_zero():
    effect = effects.Effect(np.array([0.004]), np.array([0.0005]), np.array([5.0]))
    judged = decide(effect, margin=0.01)
    assert VERDICTS[judged.code[0]] == "equivalent" and judged.low[0] > 0


def test_verdict_is_what_its_interval_says():
    g = np.random.default_rng(0)
    effect = effects.Effect(g.normal(0, 0.02, (500, 6)), g.uniform(0.0005, 0.01, (500, 6)), np.full((500, 6), 4.0))
    v = decide(effect, margin=0.02)
    inside, above, below = (v.low > -0.02) & (v.high < 0.02), v.low > 0, v.high < 0
    named = np.where(inside, "equivalent", np.where(above, "better", np.where(below, "worse", "undecided")))
    assert np.array_equal(np.array(VERDICTS)[v.code], named) and len(set(named.ravel())) == 4


def test_stepping_down_finds_what_simultaneous_intervals_miss():
    far, near = [0.5] * 7, 0.003
    effect = effects.Effect(np.array([*far, near]), np.full(8, 0.001), np.full(8, 9.0))
    judged = decide(effect, margin=0.001)
    assert VERDICTS[judged.code[-1]] == "better" and 1 - 0.05 / 8 > judged.confidence[-1]
    assert effect.interval(1 - 0.05 / 8)[0][-1] < 0 < judged.low[-1]


def test_false_verdicts_stay_rare_where_plain_holm_fails():
    shares = rules(20_000)
    assert shares["stepped"] <= 0.053 and shares["plain"] > 0.06


def test_the_planned_family_counts_arms_without_runs():
    finals = runs("lora", 0.6) + runs("pissa", 0.61)
    alone = judge(finals, reference="lora", margin=0.01)
    planned = judge(finals, reference="lora", margin=0.01, arms=["lora", "pissa", "svft"], tasks=["t", "u"])
    assert planned.design.family == 4 and len(planned.comparisons) == 4
    assert planned.comparison("t", "pissa").p_adjusted > alone.comparison("t", "pissa").p_adjusted
    assert planned.comparison("u", "svft").verdict == "undecided"
    assert planned.comparison("u", "svft").note == "no pair of runs"


def test_one_seed_decides_nothing():
    result = judge(runs("lora", 0.6, seeds=1) + runs("pissa", 0.9, seeds=1), reference="lora", margin=0.01)
    only = result.comparisons[0]
    assert only.verdict == "undecided" and "one seed" in only.note and result.design.attainable_p == 1
    assert result.arms[0].letters == result.arms[1].letters == "a"


def test_pairs_are_the_shared_seeds_and_a_frozen_base_meets_all():
    finals = runs("lora", 0.6) + runs("pissa", 0.7)[:4] + [Final("none", "t", None, 0.1, 1000)]
    result = judge(finals, reference="lora", margin=0.01)
    assert result.comparison("t", "pissa").seeds == (0, 1, 2, 3)
    assert result.comparison("t", "none").seeds == (0, 1, 2, 3, 4, 5)
    assert result.comparison("t", "none").verdict == "worse"
    assert any("pissa has 4 of 6 pairs" in note for note in result.notes)


@pytest.mark.parametrize("score, bound", [(0.0, "floor"), (0.008, "floor"), (1.0, "ceiling"), (0.995, "ceiling")])
def test_alike_at_a_bound_is_not_equivalent_and_more_seeds_would_not_help(score, bound):
    finals = [Final(arm, "t", seed, score, 1000) for arm in ("lora", "pissa") for seed in range(6)]
    result = judge(finals, reference="lora", margin=0.01)
    assert verdicts(result) == {"pissa": "undecided"} and bound in result.comparisons[0].refused
    assert would_need(result, result.comparisons[0]).verdict is None
    inside = [replace(final, score=0.5) for final in finals]
    assert verdicts(judge(inside, reference="lora", margin=0.01)) == {"pissa": "equivalent"}


def test_the_majority_class_is_a_floor_too():
    finals = runs("lora", 0.71, 0.001) + runs("pissa", 0.71, 0.001)
    assert verdicts(judge(finals, reference="lora", margin=0.02)) == {"pissa": "equivalent"}
    at_majority = [replace(final, floor=0.7) for final in finals]
    assert "floor" in judge(at_majority, reference="lora", margin=0.02).comparisons[0].refused


def test_runs_that_fall_apart_or_diverge_or_are_few_are_not_equivalent():
    """Twenty seeds give an interval inside the margin although every second run learns less."""
    lower = [0.012 * (seed % 2) for seed in range(60)]
    two_groups = [Final("split", "t", s, 0.6 - lower[s] + 0.0002 * (s % 3), 1000) for s in range(60)]
    finals = runs("lora", 0.594, 0.001, 60)
    split = judge(finals + two_groups, reference="lora", margin=0.01).comparisons[0]
    assert split.low > -0.01 and split.high < 0.01 and split.verdict == "undecided"
    assert "30 of 60 runs of the arm lie in a group of their own" in split.refused
    one_diverged = [replace(final, arm="lost", diverged=final.seed == 3) for final in finals]
    lost = judge(finals + one_diverged, reference="lora", margin=0.01).comparisons[0]
    assert lost.refused == "1 of 60 runs of the arm diverged"
    few = judge(finals[:4] + [replace(f, arm="same") for f in finals[:4]], reference="lora", margin=0.01).comparisons[0]
    assert few.verdict == "undecided" and "4 seeds, fewer than the 5" in few.refused


def test_normal_runs_seldom_look_like_two_groups_and_two_groups_do():
    g = np.random.default_rng(2)
    for n in (5, 6, 8, 12, 20):
        normal = g.normal(0.6, 0.01, (4000, n))
        assert (in_groups(normal, margin=0.0) > 0).mean() < 0.065
        split = normal * 0.1 + 0.05 * (np.arange(n) % 2)
        assert (in_groups(split, margin=0.01) > 0).mean() > 0.95 and not in_groups(split, margin=0.2).any()


def test_letters_never_contradict_the_verdicts():
    """Sharing a letter with the reference means: called neither better nor worse. Found where letters had said else."""
    g = np.random.default_rng(4)
    seen = set()
    for _ in range(20):
        means = [0.6, *(0.6 + g.normal(0, 0.012, 9))]
        finals = [
            Final(f"a{at}", "t", s, mean + g.normal(0, 0.005), 1000) for at, mean in enumerate(means) for s in range(6)
        ]
        result = judge(finals, reference="a0", margin=0.01)
        letters = {row.arm: set(row.letters) for row in result.arms}
        for c in result.comparisons:
            assert bool(letters[c.arm] & letters["a0"]) == (c.verdict not in ("better", "worse"))
            seen.add(c.verdict)
    assert seen == {"better", "worse", "equivalent", "undecided"}


def test_the_minimum_detectable_effect_is_each_arms_own():
    finals = runs("lora", 0.6, 0.002) + runs("quiet", 0.6, 0.002) + runs("noisy", 0.6, 0.1)
    result = judge(finals, reference="lora", margin=0.01)
    quiet, noisy = (result.comparison("t", arm) for arm in ("quiet", "noisy"))
    assert noisy.mde > 3 * quiet.mde and quiet.spread == pytest.approx(quiet.sd)
    sd = noisy.sd * np.sqrt(5 / sps.chi2.ppf(0.5, 5))  # median-unbiased
    assert power.verdict_probabilities(noisy.mde, sd, 6, 0.05 / 2, 0.01)[0] == pytest.approx(0.8, abs=1e-3)


def test_a_diverged_run_is_a_result():
    finals = runs("lora", 0.6) + [Final("bad", "t", seed, 0.01, 1000, diverged=True) for seed in range(6)]
    result = judge(finals, reference="lora", margin=0.01)
    assert verdicts(result) == {"bad": "worse"} and any("6 of 6" in note for note in result.notes)


def test_crossed_uses_items_and_is_wider():
    g = np.random.default_rng(5)
    finals = []
    for arm, hard in (("lora", g.uniform(size=200)), ("pissa", g.uniform(size=200))):
        for seed in range(6):
            items = {str(i): float(g.uniform() < p) for i, p in enumerate(hard)}
            finals.append(Final(arm, "t", seed, float(np.mean(list(items.values()))), 200, items=items))
    paired = judge(finals, reference="lora", margin=0.01).comparisons[0]
    crossed = judge(finals, reference="lora", margin=0.01, procedure="crossed").comparisons[0]
    assert crossed.se > paired.se and crossed.estimate == pytest.approx(paired.estimate)
    assert paired.item_noise == pytest.approx(np.sqrt(2 / 6 / 200), rel=0.15)


def test_more_seeds_would_decide_and_are_counted():
    finals = runs("lora", 0.6, 0.01) + runs("pissa", 0.62, 0.01)
    result = judge(finals, reference="lora", margin=0.001)
    only = result.comparisons[0]
    need = would_need(result, only)
    assert only.verdict == "undecided" and 6 < need.seeds < 60 and need.verdict == "better" and need.items is None


def test_letters_mean_not_separated_on_any_pattern():
    g = np.random.default_rng(6)
    for count in (2, 5, 9):
        for _ in range(30):
            apart = np.triu(g.uniform(size=(count, count)) < 0.5, 1)
            apart = apart | apart.T
            letters = [set(text) for text in compact_letters(apart)]
            assert all(bool(letters[i] & letters[j]) != apart[i, j] for i in range(count) for j in range(i))


def test_bad_input_is_one_line():
    with pytest.raises(UserError, match="reference arm 'lroa' has no final run; did you mean 'lora'"):
        judge(runs("lora", 0.6), reference="lroa", margin=0.01)
    with pytest.raises(UserError, match="seed 0 occurs twice"):
        judge(runs("lora", 0.6) + runs("lora", 0.6)[:1], reference="lora", margin=0.01)
    with pytest.raises(UserError, match="procedure=t"):
        judge(runs("lora", 0.6), reference="lora", margin=0.01, procedure="t")


def test_other_test_items_are_noted():
    ours = [Final("lora", "t", seed, 0.5, 2, items={"a": 1.0, "b": 0.0}) for seed in range(3)]
    theirs = [Final("longer", "t", seed, 0.5, 2, items={"a": 1.0, "c": 0.0}) for seed in range(3)]
    (comparison,) = judge(ours + theirs, reference="lora", margin=0.02).comparisons
    assert "not the same test items" in comparison.note
