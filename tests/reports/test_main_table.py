"""The main table says what the statistics say, row by row, and shows every gap."""

from __future__ import annotations

import numpy as np
import pytest

from lorax.records import Store
from lorax.reports.columns import table as text_table
from lorax.reports.main_table import main_table, score_columns, select, setting_columns, study_rows
from lorax.studies.study import read_study


@pytest.fixture(scope="module")
def study(demo):
    return read_study(demo.spec, demo.store)


def test_numbers_are_those_of_the_judgement(study):
    table = main_table(study).set_index(["task", "arm"])
    for versus in study.result.comparisons:
        line = table.loc[(versus.task, versus.arm)]
        assert (line["verdict"], line["difference"]) == (versus.verdict, versus.estimate)
        assert (line["difference_low"], line["confidence"]) == (versus.low, versus.confidence)
    row = table.loc[("words", "lora")]
    assert row["verdict"] == "reference" and np.isnan(row["difference"])
    assert (row["lr"], row["seeds"], row["items"], row["parameters"]) == (1e-3, 5, 200, 40_000)
    assert len({table.loc[("words", arm), "trials"] for arm in ("lora", "pissa", "svft", "full")}) == 1
    assert table.loc[("words", "pissa"), "verdict"] == "better" and table.loc[("words", "base"), "seeds"] == 1


def cells(columns, study, *arms):
    """The texts of some arms' rows, by column title."""
    shown = text_table(columns, select(study_rows(study), "words", arms))
    return [dict(zip(shown.head, line, strict=True)) for line in shown.body]


def test_text_shows_intervals_and_marks_asymmetries(study):
    scores = cells(score_columns(), study, *study.spec.labels)
    assert [line["arm"] for line in scores] == ["lora", "rslora (2)", "pissa (1)", "svft", "full", "base"]
    assert scores[0]["score [95 %]"].startswith("55.") and "[" in scores[0]["score [95 %]"]
    assert "[" not in scores[-1]["score [95 %]"], "one run has no interval"
    assert "score [90 %]" in [column.head for column in score_columns(alpha=0.1)]
    (setting,) = cells(setting_columns(), study, "lora")
    assert (setting["lr"], setting["trials"]) == ("1e-3", str(study.choices["words", "lora"].trials))


def test_edges_divergence_and_missing_rounds_show(tmp_path, make_study):
    store = Store(tmp_path)
    arms = [{"init": "lora", "label": "lora"}, {"init": "svft", "label": "svft", "lr": 1e-3}]
    tuning = {"points": 6, "rounds": 0, "seeds": [101, 102]}
    spec = make_study(store, arms, tuning=tuning, costs=None, stop="final")
    study = read_study(spec, store)
    table = main_table(study).set_index("arm")
    assert table["mean"].isna().all() and (table["verdict"] == "").all()
    assert table.loc["svft", "edge"] == "high" and table.loc["lora", "edge"] == ""
    (setting,) = cells(setting_columns(), study, "svft")
    assert setting["lr"].endswith("↑") and {setting[key] for key in ("init s", "step ms", "peak MB")} == {"-"}
