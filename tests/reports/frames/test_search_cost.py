"""What the search of an arm cost is what its records add up to."""

from __future__ import annotations

from dataclasses import replace

from lorax.records import Store
from lorax.reports import measures
from lorax.reports.frames.search_cost import search_costs
from lorax.studies.study import read_study


def test_runs_and_steps_of_every_stage_are_counted(make_study, tmp_path):
    """Under `method` three rates a seed are scored on test; the run at the pick counts once."""
    store = Store(tmp_path)
    arms = [{"init": "lora"}, {"init": "pissa"}, {"init": "none", "label": "base", "trained": False}]
    study = read_study(make_study(store, arms, estimand="method", seeds=range(6)), store)
    lora, pissa = search_costs(study)
    assert (lora.arm, lora.tuning, lora.final, lora.screening, lora.other) == ("lora", 12, 18, 0, 0)
    assert lora.rates == 6 and lora.steps == (12 + 18) * 60 and pissa.steps == lora.steps
    part = measures.search_part(study)
    assert part.tables[0].head == ["arm", "rates tried", "tuning runs", "runs scored on test", "steps in all"]
    assert part.tables[0].body[0] == ["lora", "6", "12", "18", "1,800"]
    assert "the learning rate alone was searched" in part.lines[0]
    stray = replace(next(iter(study.finals["words", "lora"].values())), run_id="x")
    more = replace(study, unasked=(stray,))
    assert search_costs(more)[0].other == 1 and "other records" in measures.search_part(more).tables[0].head


def test_a_screening_counts_with_its_short_steps(make_study, tmp_path):
    store = Store(tmp_path)
    spec = make_study(store, ["lora", "pissa"], tuning={"halving": {"steps": 15}}, fixed={"steps": 60}, seeds=(0, 1))
    (cost, _) = search_costs(read_study(spec, store))
    assert (cost.screening, cost.tuning, cost.final) == (12, 6, 2) and cost.steps == 12 * 15 + 8 * 60
    assert {one.measure for one in measures.all_of(read_study(spec, store))} >= {"search_steps", "cost_parameters"}
