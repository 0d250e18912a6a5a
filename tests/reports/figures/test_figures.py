"""Figures: that they show what there is, that nothing overlaps, that files are whole and the same each time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lorax.records import RunRecord, Store
from lorax.reports.figures import study as study_figures
from lorax.reports.figures.diagnostics import diagnostics
from lorax.reports.figures.learning_rates import response, winner_flip
from lorax.reports.figures.pareto import pareto
from lorax.reports.figures.runs import training
from lorax.reports.figures.style import colours, folded, label_ends, legend_right, panels, save, spread
from lorax.reports.frames.items import item_scores
from lorax.reports.main_table import main_table
from lorax.studies.study import read_study


def frame(**arms):
    """Arms as {name: {lr: [scores]}}."""
    lines = [
        {"arm": arm, "task": "words", "lr": lr, "seed": seed, "score": score}
        for arm, points in arms.items()
        for lr, scores in points.items()
        for seed, score in enumerate(scores)
    ]
    return pd.DataFrame(lines).astype({"score": float})


def test_a_task_without_a_winner_has_no_flip_and_diverged_runs_are_still_drawn():
    assert winner_flip(frame(a={1e-3: [np.nan], 1e-2: [np.nan]}, b={1e-3: [0.1], 1e-2: [0.2]}), "a") is None
    assert response(frame(a={1e-3: [np.nan]})) is not None
    lost = RunRecord("r", "s", "diverged", {}, {}, task={"name": "words"}, curve=[{"step": 1, "loss": None}])
    assert training({"a": [lost]}) is not None


def draw(study, scores):
    """All figures of a study by name."""
    return {one.name: one.figure for one in study_figures.draw_all(study, scores, main_table(study))}


def test_labels_keep_their_distance_and_their_order():
    placed = spread([0.0, 0.01, 0.02, 0.5, 0.99, 1.0], 0.1, 0, 1)
    assert min(np.diff(placed)) >= 0.1 - 1e-9 and min(placed) >= 0 and max(placed) <= 1 + 1e-9
    looks = colours([f"m{i}" for i in range(20)])
    assert len(set(looks.values())) == 20, "twenty arms can still be told apart"


def test_nothing_to_draw_is_no_figure():
    assert response(pd.DataFrame(columns=["arm", "task", "lr", "seed", "score"])) is None
    assert pareto(pd.DataFrame({"arm": ["a"], "task": ["t"], "mean": [0.5], "low": [0.4], "high": [0.6],
                               "parameters": [None], "seconds": [None]})) is None  # fmt: skip
    assert diagnostics(pd.DataFrame(columns=["arm", "task", "seed", "quantity", "value"])) is None


def test_every_figure_of_a_study_lays_out_without_overlap(demo):
    """No two texts of a panel overlap, and no axes are squeezed to nothing."""
    study = read_study(demo.spec, demo.store)
    drawn = draw(study, item_scores(study, demo.store))
    assert next(iter(drawn)) == "forest"
    assert set(drawn) >= {"learning_rate", "winner_flip", "selection", "training", "pareto", "agreement",
                          "diagnostics_words", "diagnostics_sums"}  # fmt: skip
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        for axes in figure.axes:
            if axes.get_visible():
                assert axes.get_window_extent().height > 60, name
            boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), name


def test_files_are_the_same_each_time(tmp_path):
    def once(name):
        figure, (axes,) = panels(1)
        axes.plot([1, 2], [3, 4])
        return [path.read_bytes() for path in save(figure, tmp_path / name, "f")]

    assert once("a") == once("b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["f.png", "f.svg"]


def test_a_study_that_has_not_tuned_draws_what_it_has(tmp_path, make_study):
    store = Store(tmp_path)
    arms = [{"init": "lora", "label": "lora"}, {"init": "pissa", "label": "pissa"}]
    study = read_study(make_study(store, arms, tuning=None, seeds=(0, 1)), store)
    drawn = draw(study, item_scores(study, store))
    assert "learning_rate" not in drawn and {"training", "pareto", "agreement"} <= set(drawn)


def test_more_arms_than_can_be_told_apart_are_not_drawn_and_older_files_go(demo, tmp_path, monkeypatch):
    study = read_study(demo.spec, demo.store)
    drawn = study_figures.draw_all(study, {}, main_table(study))
    monkeypatch.setattr(study_figures, "MOST_ARMS", len(demo.spec.arms) - 1)
    fewer = draw(study, {})
    assert {"training", "pareto"} <= {one.name for one in drawn} - fewer.keys() and "learning_rate" in fewer
    assert f"{len(demo.spec.arms)} arms" in study_figures.left_out(study)[0]
    study_figures.save_all([one for one in drawn if one.name == "pareto"], tmp_path)
    study_figures.save_all([one for one in drawn if one.name == "learning_rate"], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"learning_rate.png", "learning_rate.svg"}


def test_long_names_leave_room_for_the_panel_and_stand_whole_within_the_figure(tmp_path, recwarn):
    names = [f"lora share=common task.parts={{a_{i}: toy, b: toy_classification}} model.path=elsewhere" for i in "12"]
    figure, [axes] = panels(1)
    axes.plot([0, 1], [0, 1])
    label_ends(axes, [(1.0, 1.0, name, "black") for name in names])
    [above, below] = sorted((text for text in axes.texts), key=lambda text: -text.get_position()[1])
    beside, [ranked] = panels(1)
    ranked.plot([0, 1], [0, 1])
    legend_right(ranked, colours(names))
    for drawn in (figure, beside):
        save(drawn, tmp_path, "drawn")
        within = drawn.get_tightbbox().bounds
        assert 0 <= within[0] and within[0] + within[2] <= 7.2
        assert drawn.axes[0].get_position().width > 0.4
    assert not recwarn.list
    assert above.get_window_extent().y0 >= below.get_window_extent().y1  # each of several lines
    assert folded("lora, trained") == "lora, trained"  # short ones as they were
