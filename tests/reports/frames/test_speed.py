"""Steps to a loss, loss at a budget, loss at equal seconds: closed forms on straight curves, scipy's paired t."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as sps

from lorax.records import RunRecord
from lorax.reports import measures
from lorax.reports.frames.measures import Measured
from lorax.reports.frames.speed import speeds
from lorax.reports.text import measures as text
from lorax.studies.study import read_study

STEPS = 19
"""Below 20 steps curves are not smoothed."""


def run(slope, ended=None):
    """Loss 2 - slope * step."""
    losses = [2 - slope * step if ended is None or step < ended else None for step in range(1, STEPS + 1)]
    return RunRecord("r", "s", "finished" if ended is None else "diverged", {}, {},
                     curve=[{"step": k, "loss": loss} for k, loss in enumerate(losses)])  # fmt: skip


def probe(init, step_ms):
    return RunRecord("c", "s", "finished", {}, {}, costs={"init_seconds": init, "step_ms": step_ms})


@pytest.fixture
def read(demo):
    """Measures by (arm, name) of a study whose final runs on one task are these."""
    study = read_study(demo.spec, demo.store, items=False)

    def measured(costs=None, **arms):
        finals = {("words", arm): dict(enumerate(runs)) for arm, runs in arms.items()}
        probes = {("words", arm): cost for arm, cost in (costs or {}).items()}
        made = replace(study, finals=finals, costs=probes)
        return {(one.arm, one.measure): one for one in speeds(made)}, made

    return measured


SLOPES, FASTER = (0.05, 0.06, 0.07), (0.10, 0.11, 0.16)


def test_steps_to_the_loss_of_the_reference_s_slowest_run(read):
    found, _ = read(lora=[run(s) for s in SLOPES], pissa=[run(s) for s in FASTER])
    goal = 2 - 0.05 * STEPS
    steps = {arm: np.ceil((2 - goal) / np.array(of) - 1e-9) for arm, of in (("lora", SLOPES), ("pissa", FASTER))}
    assert found["lora", "steps_to_loss"].value == steps["lora"].mean() and found["lora", "steps_to_loss"].note == ""
    one = found["pissa", "steps_to_loss_difference"]
    interval = sps.ttest_rel(steps["pissa"], steps["lora"]).confidence_interval(0.95)
    assert (one.value, one.low, one.high) == pytest.approx(((steps["pissa"] - steps["lora"]).mean(), *interval))


def test_runs_that_never_arrive_count_all_their_steps_and_are_counted(read):
    found, _ = read(lora=[run(s) for s in SLOPES], svft=[run(s) for s in (0.02, 0.06, 0.07)], full=[run(0.01)] * 3)
    one = found["svft", "steps_to_loss"]
    assert one.value == pytest.approx((STEPS + 16 + 14) / 3) and one.note == "1 of 3 never"
    assert text.steps(one).endswith("(1 of 3 never)")
    assert text.steps(found["full", "steps_to_loss"]) == f"≥{STEPS}"


def test_what_rounds_to_nothing_has_no_sign_and_what_does_not_keeps_it():
    one = Measured("t", "a", "steps_to_loss_difference", 8.2, -0.3, 16.0, 0.95, "steps", "")
    assert text.steps(one) == "+8 [0, +16]"
    loss = Measured("t", "a", "loss_at_all_steps_difference", -0.0004, -0.01, -0.0006, 0.95, "loss", "")
    assert text.loss(loss) == "0.000 [-0.010, -0.001]"


def test_loss_at_half_and_at_all_steps_against_the_paired_t(read):
    found, _ = read(lora=[run(s) for s in SLOPES], pissa=[run(s) for s in FASTER])
    for name, step in (("half", 9), ("all", STEPS)):
        ours, theirs = (2 - step * np.array(of) for of in (FASTER, SLOPES))
        one, interval = found["pissa", f"loss_at_{name}_steps_difference"], sps.ttest_rel(ours, theirs)
        assert one.value == pytest.approx((ours - theirs).mean())
        assert (one.low, one.high) == pytest.approx(tuple(interval.confidence_interval(0.95)))
        assert found["lora", f"loss_at_{name}_steps"].value == pytest.approx(theirs.mean())


def test_at_equal_seconds_the_slower_arm_is_read_earlier(read):
    """19 steps of 100 ms end at 1.9 s; the arm needs 0.3 s first and 200 ms a step: 8 steps by then."""
    costs = {"lora": probe(0.0, 100.0), "pissa": probe(0.3, 200.0)}
    found, study = read(costs, lora=[run(s) for s in SLOPES], pissa=[run(s) for s in FASTER], svft=[run(0.1)] * 3)
    one = found["pissa", "loss_at_equal_seconds_difference"]
    assert one.value == pytest.approx(STEPS * np.mean(SLOPES) - 8 * np.mean(FASTER))
    assert "step 8 against 19" in one.note and text.seconds(one).endswith("(8 : 19)")
    assert ("svft", "loss_at_equal_seconds_difference") not in found, "it has no probe"
    part = measures.speed_part(study, list(found.values()))
    assert "before its rate has fallen" in " ".join(part.lines) and "words: 1.05" in " ".join(part.lines)


def test_a_run_that_diverged_has_no_loss_and_arms_without_curves_no_row(read):
    found, _ = read(lora=[run(s) for s in SLOPES], pissa=[run(0.1), run(0.1, ended=5), run(0.1)], base=[])
    one = found["pissa", "loss_at_all_steps_difference"]
    assert np.isnan(one.value) and text.loss(one) == "- (1 of 3 have no loss at step 19)"
    assert found["pissa", "steps_to_loss"].note == "1 of 3 never"
    assert not [key for key in found if key[0] == "base"]
    assert read(lora=[run(0.1, ended=1)] * 2, pissa=[run(0.1)] * 2)[0].keys() == {
        (arm, name) for arm in ("lora", "pissa") for name in ("loss_at_half_steps", "loss_at_all_steps")
    } | {("pissa", f"loss_at_{name}_steps_difference") for name in ("half", "all")}
