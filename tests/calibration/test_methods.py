"""Verdicts read as method against method: what is simulated, that tables say the same, what the page says of it."""

from __future__ import annotations

import numpy as np
import pytest

from lorax.calibration import method_figures, method_worlds
from lorax.calibration.methods import detected, measure, peeked
from lorax.calibration.protocol import at_selected, selected, window_rates, windows
from lorax.calibration.worlds import World, draws
from lorax.calibration.written import agreement, every_other_short, incomplete, worst_lost

SMALL = World("small", arms=2, seeds=5, effects=(0.05,), **method_worlds.UNEQUAL)


def test_simulated_runs_have_the_wanted_peaks_and_spread():
    world = World("known", arms=2, effects=(0.1, -0.05), on_grid=True, spread=(0.02,), items=0.0, common=0.0)
    (batch,) = draws(world, 150)
    top = batch.test.mean(axis=-1).max(axis=-1)
    assert (top[:, 1:] - top[:, :1]).mean(axis=0) == pytest.approx([0.1, -0.05], abs=0.003)
    assert np.allclose(batch.peak, [0.1, -0.05]) and np.allclose(batch.lattice, batch.peak)
    assert batch.test.std(axis=-1, ddof=1).mean() == pytest.approx(0.02, rel=0.05)
    (off,) = draws(World("between", arms=2), 50)
    assert np.abs(off.lattice - off.peak).max() <= 0.25 * 0.02 + 1e-9, (
        "half a step off the peak loses a quarter of a step"
    )
    again = next(draws(world, 150))
    assert np.array_equal(again.test, batch.test)


def test_a_collapse_and_a_second_group_are_part_of_the_truth():
    (collapsed,) = draws(World("lost", arms=1, collapse=0.1, on_grid=True), 200)
    assert np.allclose(collapsed.peak, -0.06) and (collapsed.test[:, 1] == 0).mean() == pytest.approx(0.1, abs=0.02)
    (split,) = draws(World("two groups", arms=1, split=0.04, on_grid=True), 200)
    assert np.allclose(split.peak, 0.02)
    level = split.test.mean(axis=-1).max(axis=-1)
    assert (level[:, 1] - level[:, 0]).mean() == pytest.approx(0.02, abs=0.004)


def test_windows_stay_on_the_lattice_hold_their_best_and_seldom_end_at_an_edge():
    (batch,) = draws(World("windows", **method_worlds.UNEQUAL), 100)
    low, high, best = window_rates(batch)
    assert np.all((low <= best) & (best <= high) & (high - low >= 2) & (high - low <= 4))
    every = windows(batch)
    assert every.at_edge.mean() < 0.03
    inside = np.take_along_axis(batch.test, best[:, :, None, None], axis=2)[:, :, 0]
    assert np.array_equal(every.at_best[:, :, 0], inside)
    assert at_selected(batch).shape == inside.shape and np.all(np.abs(selected(batch) - best) <= 3)


@pytest.mark.parametrize("estimand", ["method", "rate"])
def test_what_is_measured_on_arrays_is_what_written_records_say(estimand):
    """Run by run through the rounds of a study, its store and `read_study`."""
    assert agreement(SMALL, 1, estimand=estimand) == {"verdicts": 2, "equal": 2}


def test_a_refused_equivalence_is_undecided_on_arrays_as_in_records():
    floor = World("floor", arms=2, score=0.01, spread=(0.001,), step=(0.001,), items=0.001, common=0.0, margin=0.02)
    found = {row.estimand: row for row in measure(floor, 20)}
    assert found["rate"].equivalent == found["method"].equivalent == 0
    assert agreement(floor, 1, estimand="rate") == {"verdicts": 2, "equal": 2}
    middle = World("middle", arms=2, score=0.3, spread=(0.001,), step=(0.001,), items=0.001, common=0.0, margin=0.02)
    assert measure(middle, 20, estimands=("rate",))[0].equivalent > 0.9


def test_method_keeps_the_level_that_selected_rates_break():
    method, rate = measure(World("level", arms=8, on_grid=True), 250)
    assert method.false_tables < 0.065 and method.coverage > 0.94
    assert rate.false_tables > 0.15 and rate.coverage < 0.9


def test_the_printed_effect_is_found_as_often_as_printed():
    (found,) = detected(World("printed", arms=4, spread=(0.014,)), 200)
    assert 0.01 < found["effect"] < 0.06 and 0.65 < found["found"] < 0.95


def test_looking_often_is_wrong_often():
    looked = peeked(World("looked", arms=6, seeds=10), 60)
    assert looked["rate"] > 0.15 and looked["method"] < looked["rate"] and looked["followed"] <= looked["rate"] + 0.2


@pytest.mark.parametrize("missing", [every_other_short, worst_lost])
def test_missing_runs_are_missing_pairs(missing):
    scores = np.random.default_rng(0).normal(size=(5, 6))
    lost = missing(scores, np.random.default_rng(1))
    assert not lost[0].any() and lost.any()
    if missing is worst_lost:
        assert np.all(scores[lost] == scores.min(axis=1)[lost.any(axis=1)])
    wrong = incomplete(World("gaps", arms=2, seeds=6), 2, missing)
    assert set(wrong) == {"method", "rate"}


def test_the_page_says_what_was_measured_and_names_what_is_broken(monkeypatch):
    monkeypatch.setattr(method_worlds, "quick", lambda: [World("a world", arms=2), World("steep one", arms=2)])
    found = method_figures.figures(quick=True)
    text = "\n".join(method_figures.text(found))
    assert "| a world | method |" in text and "method 4 of 4, rate 4 of 4" in text and method_figures.kept(found)
    row = next(row for row in found["equal"] if row["estimand"] == "method")
    wrong = row | {"false_tables": 0.3, "coverage": 0.5, "false_equivalent": 0.4, "pass": False}
    assert not method_figures.broken(row) and len(method_figures.broken(wrong)) == 3
    assert not method_figures.kept(found | {"equal": [wrong]})
    named = found | {"equal": [wrong | {"named": "a reason"}]}
    assert method_figures.kept(named)
    (sentence,) = method_figures.not_kept(named)
    assert sentence.startswith(f"{row['world']}: 30.0 % of studies with a false difference, coverage 50.0 %")
    assert f"- {sentence}" in "\n".join(method_figures.text(named)) and "(a reason)" in sentence
    assert not method_figures.kept(found | {"written": [{"estimand": "method", "verdicts": 4, "equal": 3}]})
