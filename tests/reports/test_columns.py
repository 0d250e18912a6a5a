"""A new column is one line in one list; every table shows it, in every format."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from lorax.records import RunRecord, Store
from lorax.reports import columns, main_table
from lorax.reports.columns import Column
from lorax.reports.frames.items import descriptions, item_scores
from lorax.reports.study import document, write_study
from lorax.reports.sweep import read_sweep, write_sweep
from lorax.reports.text import html, latex, markdown
from lorax.studies.study import read_study

CURVE = Column("curve_steps", "curve length", lambda row: max((len(r.curve) for r in row.records), default=None), str)


@pytest.fixture
def pages(demo):
    """The made study and its runs taken as a sweep: the frame of the CSV file, and the page in each format."""

    def render():
        study = read_study(demo.spec, demo.store)
        sweep = read_sweep(demo.store.read(demo.name))
        reports = {
            "study": (
                main_table.main_table(study),
                document(study, descriptions(study, item_scores(study, demo.store))),
            ),
            "sweep": (sweep.frame(), sweep.document("sweep")),
        }
        return {
            name: (frame, [form.render(report) for form in (markdown, latex, html)])
            for name, (frame, report) in reports.items()
        }

    return render


def test_one_more_column_is_one_line(pages, monkeypatch):
    before = pages()
    monkeypatch.setattr(columns, "EVERYWHERE", [*columns.EVERYWHERE, CURVE])
    for name, (frame, texts) in pages().items():
        old_frame, old_texts = before[name]
        assert [key for key in frame if key not in old_frame] == ["curve_steps"]
        pd.testing.assert_frame_equal(frame[list(old_frame)], old_frame)
        assert set(frame["curve_steps"].dropna()) == {0, 60}
        for text, old in zip(texts, old_texts, strict=True):
            assert "curve length" in text and "curve length" not in old


def test_the_files_have_it_too(demo, monkeypatch, tmp_path, make_study):
    monkeypatch.setattr(columns, "EVERYWHERE", [*columns.EVERYWHERE, CURVE])
    study, sweep = Store(tmp_path / "study"), Store(tmp_path / "sweep")
    make_study(study, ["lora", "pissa"], tuning=None, seeds=(0, 1))
    for record in study.read("demo"):
        sweep.write(record)
    _, paths = write_study(study, "demo")
    _, more = write_sweep(sweep, "demo")
    texts = {
        (path.parents[1].name, path.suffix): path.read_text() for path in paths + more if path.parent.name == "tables"
    }
    for store, suffix in (("study", ".md"), ("study", ".tex"), ("study", ".html"), ("sweep", ".md")):
        assert "curve length" in texts[store, suffix]
    for store in ("study", "sweep"):
        assert "curve_steps" in (tmp_path / store / "tables" / "demo.csv").read_text()


def test_columns_without_a_key_or_a_head_are_in_one_kind_of_table_only():
    shown = [Column("sd", "", lambda row: row), Column("", "text", lambda row: row, "{} points".format)]
    assert list(columns.frame(shown, [1, 2])) == ["sd"]
    table = columns.table(shown, [1, 2], "title")
    assert table.head == ["text"] and table.body == [["1 points"], ["2 points"]]


def test_ranges_and_gaps_of_a_row_of_runs():
    def run(**fields):
        return RunRecord("r", "s", "finished", {}, {}, **fields)

    def cells(records):
        row.records = records
        table = columns.table([columns.TRAINED, columns.ETA, *columns.EVERYWHERE], [row])
        return dict(zip(table.head, table.body[0], strict=True))

    row, names = SimpleNamespace(), ("trained", "eta", "step-0 error")
    small = run(costs={"trainable": 10}, init_report={"eta": [1.0, 4.0], "step0_error": 1e-7})
    large = run(costs={"trainable": 2000}, init_report={"eta": 2.0, "step0_error": 2e-7})
    assert [cells([small, large, run()])[name] for name in names] == ["10 .. 2,000", "1 .. 4", "2e-07"]
    assert [cells([])[name] for name in names] == ["-", "-", "-"]
