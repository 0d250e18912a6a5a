"""The front: by means, by what was shown, and equal memory, in cases small enough to read off."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd

from lorax.reports.figures.pareto import dodged, pareto
from lorax.reports.frames.pareto import measured, memory, with_fronts
from lorax.reports.frames.study import COSTS
from lorax.stats.result import Pair

LINES = [("cheap", 0.50, 10, 100), ("lora", 0.60, 20, 200), ("equal", 0.58, 20, 210), ("full", 0.55, 90, 900)]


def prices():
    frame = pd.DataFrame(LINES, columns=["arm", "mean", "parameters", "peak_mb"])
    return frame.assign(task="t", low=frame["mean"] - 0.01, high=frame["mean"] + 0.01, seconds=np.nan, examples=8.0)


def shown(*pairs):
    return SimpleNamespace(pairs=[Pair("t", a, b, estimate, 0.0, 0.0, True) for a, b, estimate in pairs])


def states(result, cost="parameters"):
    frame = with_fronts(prices(), result)
    return dict(zip(frame["arm"], frame[f"front_{cost}"], strict=True))


def test_an_arm_is_off_the_front_only_where_a_cheaper_one_is_shown_to_score_higher():
    assert states(None) == {"cheap": "on", "lora": "on", "equal": "open", "full": "open"}
    assert states(shown(("full", "lora", -0.05))) == {"cheap": "on", "lora": "on", "equal": "open", "full": "off"}
    assert states(shown(("lora", "full", 0.05)))["full"] == "off", "whichever is first"
    assert states(shown(("lora", "cheap", 0.1)))["cheap"] == "on", "a dearer arm takes nothing off"
    assert set(states(None, "seconds").values()) == {None}


def test_costs_are_measures_with_their_place():
    lines = {(one.arm, one.measure): one for one in measured(with_fronts(prices(), None))}
    assert lines["full", "cost_peak_mb"].value == 900 and lines["full", "cost_peak_mb"].note == "front: open"
    assert {measure for _, measure in lines} == {"cost_parameters", "cost_peak_mb", "cost_examples"}
    assert set(COSTS) >= {"parameters", "seconds", "peak_mb", "examples"}


def test_at_equal_memory_the_arms_that_fit_are_compared():
    line = memory(prices(), "t", "lora")
    assert "cheap fit too, and lora has the highest mean" in line and "More: equal +5 %, full +350 %" in line
    alone = prices()
    line = memory(alone[alone["arm"] != "cheap"], "t", "lora")
    assert "no other arm fits" in line and "highest" not in line
    assert memory(prices(), "t", "none") is None and memory(prices(), "u", "lora") is None


def test_a_panel_for_each_cost_that_differs_and_no_mark_on_another():
    figure = pareto(with_fronts(prices(), shown(("full", "lora", -0.05))))
    assert [panel.get_xlabel() for panel in figure.axes] == ["trained parameters", "peak memory, MB"]
    marks = [line for line in figure.axes[0].lines if line.get_marker() not in ("_", "none", "None")]
    assert len(marks) == len(LINES) and [mark.get_alpha() for mark in marks] == [1.0, 1.0, 1.0, 0.45]
    filled = [mark.get_markerfacecolor() != "white" for mark in marks]
    assert filled == [True, True, False, False]
    front = figure.axes[0].lines[-1]
    assert list(front.get_xdata()) == [10, 20] and list(front.get_ydata()) == [0.50, 0.60]
    assert dodged([10, 20, 20, 90])[1:3] == [-2.0, 2.0] and pareto(with_fronts(prices().iloc[:0], None)) is None
