"""Measures beside the verdicts: the table, the CSV and the JSON of a made study say what the statistics give."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from lorax.records import Store
from lorax.reports import measures
from lorax.reports.frames import measures as frames
from lorax.reports.text import measures as text
from lorax.stats.measures.improvement import improvement
from lorax.stats.measures.share import recovered
from lorax.studies.study import read_study


def test_the_part_the_csv_and_the_json_hold_every_measure(written):
    page, paths = written
    part = page.split("## Beside the verdicts")[1].split("\n## ")[0]
    assert "P(better run)" in part and "recovered, %" in part and "decades of rates" in part
    assert "(arm - base) / (full - base)" in part and "over 2 tuning seeds" in part
    lines = list(csv.DictReader(io.StringIO(paths["demo.measures.csv"].read_text())))
    assert {line["measure"] for line in lines} >= {"improvement", "recovered_share", "rate_decades"}
    both = json.loads(paths["demo.json"].read_text())
    assert len(both["measures"]) == len(lines) and {row["arm"] for row in both["rows"]} >= {"lora", "base"}
    assert "≥" not in paths["demo.tex"].read_text(), "LaTeX has a command for it"


def test_numbers_come_from_the_runs_of_the_table(demo):
    study = read_study(demo.spec, demo.store)
    by_key = {(one.task, one.arm, one.measure): one for one in measures.beside(study)}
    scores = {arm: list(study.result.arm("words", arm).scores.values()) for arm in demo.spec.labels}
    one = by_key["words", "pissa", "improvement"]
    assert (one.value, one.low, one.high) == pytest.approx(improvement(scores["pissa"], scores["lora"]))
    assert by_key["words", "base", "improvement"].value == 0 and ("words", "lora", "improvement") not in by_key
    share, found = (
        by_key["words", "svft", "recovered_share"],
        recovered(scores["svft"], scores["full"], scores["base"][0]),
    )
    assert share.value == pytest.approx(found.value) and share.low < share.value < share.high
    assert not {("words", "base", "recovered_share"), ("words", "full", "recovered_share")} & by_key.keys()
    assert by_key["words", "svft", "rate_decades"].value > 0


def test_without_base_or_full_or_tuning_there_is_no_such_column(make_study, tmp_path):
    store = Store(tmp_path)
    study = read_study(make_study(store, ["lora", "pissa"], tuning=None, seeds=(0, 1)), store)
    assert {one.measure for one in measures.beside(study)} == {"improvement"}
    assert measures.part(study, []) is None


def test_sets_that_are_no_interval_are_said_in_words():
    one = frames.Measured("t", "a", "recovered_share", 1.2, -0.3, 0.8)
    assert text.share(one) == "120 [-30, 80]"
    assert text.share(replace(one, note="outside")) == "120 [up to -30 or from 80]"
    assert text.share(replace(one, note="unbounded")) == "120 [any]"
    wide = replace(one, value=0.5, low=0.1, high=float("inf"), note="at least")
    assert (
        text.decades(wide) == "≥0.50 [0.10, ∞]"
        and text.decades(replace(wide, high=1.0, note="")) == "0.50 [0.10, 1.00]"
    )
