"""Final runs: smoothed curves, steps to a loss, agreement item by item."""

from __future__ import annotations

import numpy as np

from lorax.records import RunRecord
from lorax.reports.frames.runs import agreement, loss_curves, steps_to


def test_steps_to_a_loss_are_counted_from_one_and_none_where_it_is_not_reached():
    slow = np.array([[2.0, 1.5, 1.0], [2.0, 1.4, 0.9]])
    assert steps_to(np.array([[2.0, 1.0, 0.5]]), 1.0) == [2] and steps_to(slow, 1.0) == [3, 3]
    assert steps_to(slow, 0.95) == [None, 3]
    assert loss_curves([]).shape == (0, 0)


def test_smoothing_looks_back_only_and_a_run_that_ended_leaves_a_gap():
    """A window of a twentieth of 40 steps is two steps."""
    losses = [[4.0, 2.0] + [0.0] * 38, [4.0, 2.0]]
    runs = [RunRecord("r", "s", "finished", {}, {}, curve=[{"loss": loss} for loss in each]) for each in losses]
    curves = loss_curves(runs)
    assert curves.shape == (2, 40) and curves[0, :4].tolist() == [4.0, 3.0, 1.0, 0.0]
    assert curves[1, :2].tolist() == [4.0, 3.0] and np.isnan(curves[1, 3:]).all()


def test_agreement_compares_different_seeds_on_shared_items():
    a, b = {"x": 1.0, "y": 0.0}, {"x": 1.0, "y": 1.0, "z": 1.0}
    table = agreement({"one": [a, b], "other": [b, a], "base": [b]})
    assert table.loc["one", "one"] == 0.5 and table.loc["one", "other"] == 1.0
    assert np.isnan(table.loc["base", "base"]) and table.loc["one", "base"] == 0.75
    assert (table.fillna(0) == table.T.fillna(0)).all().all()
