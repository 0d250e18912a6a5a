"""Planning a study: what is filled in from the configuration, how many runs it has, what it can show."""

from __future__ import annotations

import pytest

from lorax.errors import UserError
from lorax.studies.parse import from_mapping
from lorax.studies.plan import bind, plan

DATA = {
    "name": "s",
    "model": "toy",
    "tasks": ["t", "u"],
    "reference": "lora",
    "margin": 0.01,
    "estimand": "rate",
    "seeds": [0, 1, 2, 3, 4, 5],
    "arms": ["lora", {"init": "lora_xs", "match": {"to": "lora", "key": "rank"}}, {"init": "none", "trained": False}],
}


def bound(**changes):
    def count(words):
        rank = int(next((word[5:] for word in words if word.startswith("rank=")), 8))
        return rank * 200 if "init=lora" in words else rank * rank

    def consumes(words):
        return {"init": {"name": words[0]}} | ({} if words[0] == "init=none" else {"lr": None})

    return bind(from_mapping(DATA | changes), lr=lambda words: 2e-3, count=count, consumes=consumes)


def test_binding_fills_centres_and_matches():
    spec = bound()
    assert spec.matched == {"lora_xs": {"rank": 40}} and spec.centre("lora_xs", "u") == 2e-3
    with pytest.raises(UserError, match="nothing counts parameters"):
        bind(from_mapping(DATA), lr=lambda words: 1.0)


def test_trained_agrees_with_the_method():
    for arm, line in (
        ({"init": "none"}, "arm 'none': init=none trains nothing; add trained: false"),
        ({"init": "pissa", "trained": False}, "arm 'pissa': trained: false, but init=pissa trains"),
    ):
        with pytest.raises(UserError, match=line):
            bound(arms=["lora", arm])


def test_the_plan_counts_what_the_protocol_asks_for():
    planned = plan(bound(), seconds=10.0)
    tuned, longer, final = 2 * 2 * 6 * 2, 2 * 2 * 2 * 2 * 2, 2 * (2 * 6 + 1)
    assert planned.jobs == {"cost": 4, "screen": 0, "tune": tuned, "extend": longer, "final": final}
    assert planned.seconds == 10 * (48 + 26)
    assert plan(bound(), {"t/lora": 1.0}).seconds is None


def test_the_plan_counts_a_screening_by_its_share_of_the_steps():
    tuning = {"points": 6, "seeds": [101, 102], "halving": {"steps": 20, "keep": 0.33}}
    planned = plan(bound(tuning=tuning, fixed={"steps": 50}), seconds=10.0)
    runs = 2 * 2 * 2  # arms, tasks, seeds; the screening may be extended by two rates, twice
    assert planned.jobs | {"cost": 0, "final": 0} == {
        "cost": 0,
        "screen": 6 * runs,
        "tune": 2 * runs,
        "extend": 4 * runs,
        "final": 0,
    }
    assert planned.seconds == pytest.approx(10 * (48 * 20 / 50 + 16 + 26))


def test_a_hopeless_design_says_so_before_it_runs():
    lines = "\n".join(plan(bound(seeds=[0, 1], assumed_sd=0.05, test_items=100)).lines)
    assert "cannot reach any verdict" in lines and "1000 or more are advised" in lines
    assert "no verdict is possible" in "\n".join(plan(bound(seeds=[0])).lines)
    assert "not a tuned comparison" in "\n".join(plan(bound(tuning="off")).lines)


def test_estimand_method_counts_three_rates_a_seed_and_says_what_it_can_show():
    """16 runs for each of 8 seeds beside the two of the base; at most two wider rates an arm."""
    method = plan(bound(estimand="method", seeds=list(range(8)), assumed_sd=0.02), seconds=10.0)
    rate = plan(bound(seeds=list(range(8)), assumed_sd=0.02), seconds=10.0)
    assert method.jobs["final"] == 2 * (2 * 8 * 3 + 1) and method.jobs["widen"] == 2 * 2 * 8 * 2
    assert rate.jobs["final"] == 2 * (2 * 8 + 1) and "widen" not in rate.jobs
    assert {**method.jobs, "final": 0, "widen": 0} == {**rate.jobs, "final": 0, "widen": 0}
    assert method.seconds - rate.seconds == 10 * 2 * 2 * 8 * 2
    assert method.design.mde > 1.1 * rate.design.mde
    assert any("estimand method: each method at its best learning rate" in line for line in method.lines)
    assert not any("seeds are few" in line for line in method.lines)
    few = plan(bound(estimand="method", seeds=[0, 1, 2, 3, 4]))
    assert any("5 seeds are few for estimand method" in line for line in few.lines)
    assert any("at the selected rates" in line for line in rate.lines)
