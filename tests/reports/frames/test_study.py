"""What a study's figures are made from follows from its records."""

from __future__ import annotations

import pytest

from lorax.reports.frames.study import by_arm, chosen_rates, final_runs, prices, selections, tuning_frame
from lorax.reports.main_table import main_table
from lorax.studies.study import read_study


@pytest.fixture(scope="module")
def study(demo):
    return read_study(demo.spec, demo.store)


def test_runs_are_found_by_arm_and_by_task(study):
    assert sum(map(len, by_arm(study).values())) == len(final_runs(study)) > 0
    assert {run.task["name"] for run in final_runs(study, "words")} == {"words"}


def test_tuning_is_a_frame_and_a_firm_choice_is_what_resampling_selects(study):
    frame = tuning_frame(study)
    assert len(frame) == len(study.trials) and set(frame["task"]) == {"words", "sums"}
    rates = chosen_rates(study)
    for place, resampled in selections(study).items():
        assert sum(resampled.frequency.values()) == pytest.approx(1) and resampled.chosen == rates[place]


def test_a_price_is_initialisation_plus_all_steps_at_the_pace_of_the_solo_run(study):
    frame = prices(study, main_table(study)).set_index(["task", "arm"])
    costs = study.costs["words", "lora"].costs
    steps = next(iter(study.finals["words", "lora"].values())).config["steps"]
    assert frame.loc[("words", "lora"), "seconds"] == pytest.approx(
        costs["init_seconds"] + steps * costs["step_ms"] / 1e3
    )
    assert frame.loc[("words", "lora"), "parameters"] == 40_000
    assert frame.loc[("words", "base"), "parameters"] != frame.loc[("words", "base"), "parameters"], "null"
    assert frame.loc[("words", "lora"), "peak_mb"] == 300
    assert frame.loc[("words", "lora"), "examples"] == 8 * steps
