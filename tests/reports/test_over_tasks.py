"""One row an arm over all tasks: in the report, the forest plot, the CSV and the JSON; none where there is one task."""

from __future__ import annotations

import json

import pytest

from lorax.records import Store
from lorax.reports import measures, over_tasks
from lorax.reports.figures.study import draw_all
from lorax.reports.main_table import main_table
from lorax.studies.study import read_study


def test_a_study_of_two_tasks_has_rows_over_both(demo, written):
    text, paths = written
    part = text.split("## Over all tasks")[1].split("\n## ")[0]
    assert "2 tasks say little about others" in part and "corrected over 5 rows at 5 %" in part
    study = read_study(demo.spec, demo.store)
    rows = over_tasks.frame(study.result).set_index("arm")
    assert rows.loc["lora", "verdict"] == "" and rows.loc["lora", "verdict_words"] == "reference"
    mean = sum(study.result.comparison(task, "pissa").estimate for task in demo.spec.tasks) / 2
    assert rows.loc["pissa", "difference"] == pytest.approx(mean)
    assert rows.loc["pissa", "difference_low"] < rows.loc["pissa", "here_low"], "tasks are drawn too"
    stored = [one for one in json.loads(paths["demo.json"].read_text())["measures"] if one["task"] == over_tasks.ALL]
    (one,) = [one for one in stored if (one["arm"], one["measure"]) == ("pissa", "difference")]
    assert one["low"] == pytest.approx(rows.loc["pissa", "difference_low"]) and one["note"] == "better"
    forest = draw_all(study, {}, main_table(study))[0]
    assert [panel.get_title(loc="left") for panel in forest.figure.axes] == [*demo.spec.tasks, over_tasks.ALL]


def test_a_study_of_one_task_has_none(make_study, tmp_path):
    store = Store(tmp_path)
    study = read_study(make_study(store, ["lora", "pissa"], tuning=None, seeds=(0, 1)), store)
    assert over_tasks.part(study.result) is None and over_tasks.frame(study.result).empty
    assert not [one for one in measures.all_of(study) if one.task == over_tasks.ALL]
