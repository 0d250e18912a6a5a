"""The report of a study: files, words that follow from the records, an HTML page that needs nothing else."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from lorax.errors import UserError
from lorax.records import RunRecord, Store, run_id
from lorax.reports import conclusions
from lorax.reports.figures.runs import training
from lorax.reports.figures.study import steps_of
from lorax.reports.frames.items import descriptions, item_scores
from lorax.reports.frames.speed import goals, speeds
from lorax.reports.frames.study import chosen_rates, final_runs
from lorax.reports.frames.study import test_scored as scored_on_test
from lorax.reports.main_table import main_table
from lorax.reports.protocol import protocol
from lorax.reports.rescore import rescored, runs_of_study, verdict_changes, write_rescored
from lorax.reports.study import document, wandb_payload, write_study
from lorax.reports.text import html, markdown
from lorax.studies.registration import frozen
from lorax.studies.study import read_study


def report(store):
    """The report without its figures."""
    study = read_study(frozen(store.root, "demo"), store)
    return document(study, descriptions(study, item_scores(study, store)))


def words(store):
    return markdown.render(report(store))


def test_all_four_tables_and_both_kinds_of_picture(demo, written):
    text, paths = written
    assert {"demo.md", "demo.csv", "demo.tex", "demo.html", "pareto.png", "pareto.svg"} <= set(paths)
    assert all(path.is_file() and path.stat().st_size for path in paths.values())
    rows = list(csv.DictReader(io.StringIO(paths["demo.csv"].read_text())))
    assert len(rows) == len(demo.spec.labels) * len(demo.spec.tasks)
    assert paths["demo.md"].read_text() == text


def test_words_say_verdicts_what_is_undecided_and_what_would_decide(written):
    text, _ = written
    assert re.search(r"words: pissa scores higher than lora by at least 5\.5 points: \+6\.8 points", text)
    assert re.search(r"undecided: .* If estimate and spread stay, a new study with \d+ seeds \(this one: 5\)", text)
    assert "Minimum detectable effect" in text and "Smallest corrected p attainable" in text
    assert "the winner depends on the rate given to all arms" in text
    assert "(1) alpha / rank: 2 (lora, rslora, svft, full), 1 (pissa)" in text
    assert "words: 200 test items, fewer than 1,000." in text
    assert "No verdict rests on them" in text


def test_many_undecided_rows_are_one_sentence(demo, monkeypatch):
    result = read_study(demo.spec, demo.store).result
    each = [line for line in conclusions.undecided(result) if line.startswith("words")]
    needed = [int(n) for line in each for n in re.findall(r"new study with (\d+) seeds", line)]
    assert needed
    monkeypatch.setattr(conclusions, "MANY", 0)
    head, line, *_ = conclusions.undecided(result)
    assert "seeds added to this one after looking at it break the promised 5 %" in head
    assert line.startswith(f"words: {len(each)} rows against lora are undecided")
    assert f"{min(needed)} to {max(needed)} seeds (this one:" in line


def test_the_report_of_estimand_method_says_so_and_shows_its_windows(make_study, tmp_path):
    """Titles, the sentence, what each arm ran and what the lattice may hide; the rules judge every rate again."""
    store = Store(tmp_path)
    arms = [{"init": "lora"}, {"init": "pissa"}, {"init": "none", "label": "base", "trained": False}]
    spec = make_study(store, arms, estimand="method", seeds=range(6), blocks={"all": ["lora", "pissa", "base"]})
    text, study = words(store), read_study(spec, store)
    assert study.complete and spec.estimand == "method"
    assert "### words: all, each method at its best learning rate" in text
    assert (
        "test selected nothing, and each end of an interval covers whichever" in text and "selected rates" not in text
    )
    (line,) = [line for line in text.splitlines() if line.startswith("- words: pissa ran")]
    assert (
        "3 rates from 5.62e-5 to 1.78e-4 and is best at 1e-4 (tuning: 1e-4)" in line and "points more (parabola" in line
    )
    values = main_table(study).set_index("arm")
    assert values.loc["pissa", "estimand"] == "method" and values.loc["pissa", "rates"] == 3
    assert values.loc["pissa", "mde"] > 0 and values.loc["base", "rates"] == 0
    assert len(final_runs(study)) == 13 and len(scored_on_test(study)) == 37
    assert "highest end of any rate" in text and "would give intervals as wide" in text
    assert "6 final seeds, fewer than 8" in text
    for run in scored_on_test(study):
        run.provenance |= {"launcher": "PackedLauncher"} | ({"pack": {"lanes": ["a", "b"]}} if run.curve else {})
    assert any("36 final runs in packs of 2, 1 alone" in line for line in protocol(study)), "every rate is counted"
    choice = study.choices["words", "pissa"]
    moved = replace(
        study, choices=study.choices | {("words", "pissa"): replace(choice, lr=choice.window[-1], edge="high")}
    )
    assert choice.pilot == choice.lr != choice.window[-1] and chosen_rates(moved)["words", "pissa"] == choice.pilot
    assert conclusions.tuning(moved) == conclusions.tuning(study), "tuning is told of the rate that tuning chose"
    table = rescored(
        store, [(arm, run) for (_, arm), by in study.windows.items() for of in by.values() for run in of.values()]
    )
    assert all("instead of" in line or "is the same" in line for line in verdict_changes(study, table))


def test_the_figure_of_training_counts_steps_to_the_loss_of_the_table(demo):
    study = read_study(demo.spec, demo.store)
    told = steps_of(study)
    lines = {(one.task, one.arm): one for one in speeds(study) if one.measure == "steps_to_loss"}
    assert told.keys() == lines.keys() and told["words", "lora"] == f"{lines['words', 'lora'].value:.0f}"
    runs = {arm: [run for run in final_runs(study, "words") if run.label == arm] for arm in ("lora", "svft")}
    (panel,) = training(runs, ["lora", "svft"], goals(study), told).axes
    assert {text.get_text() for text in panel.texts} == {f"{arm}: {told['words', arm]}" for arm in runs}
    assert panel.get_title("left") == f"words (steps to loss {goals(study)['words']:.3g} after each name)"


def test_at_the_selected_rates_is_in_the_title_and_the_table(written):
    text, paths = written
    assert "### words, at the selected rates" in text and "Verdicts hold at the selected rates" in text
    assert "Windows of rates" not in text
    rows = list(csv.DictReader(io.StringIO(paths["demo.csv"].read_text())))
    assert {row["estimand"] for row in rows} == {"rate"} and "rates" not in rows[0]


def test_near_equal_scores_name_no_winner():
    """One arm leads by 2 points at the lower rate, the other by 0.4 at the higher one."""
    lines = [("lora", 1e-3, 0.62), ("lora", 1e-2, 0.50), ("pissa", 1e-3, 0.60), ("pissa", 1e-2, 0.504)]
    frame = pd.DataFrame([{"arm": a, "task": "t", "lr": lr, "seed": 0, "score": score} for a, lr, score in lines])
    (both,) = conclusions.fixed_rate(frame, "lora")
    assert "lora from" in both and "pissa from" in both
    (one,) = conclusions.fixed_rate(frame, "lora", 0.01)
    assert "lora from" in one and "pissa from" not in one
    assert "Elsewhere the best two arms are within the margin of 1.0 points" in one
    (none,) = conclusions.fixed_rate(frame, "lora", 0.05)
    assert "at every shared learning rate the best two arms are within the margin of 5.0 points: no winner" in none
    (floor,) = conclusions.fixed_rate(frame.assign(score=0.0), "lora", 0.01)
    assert "no winner" in floor and "leads" not in floor


class Page(HTMLParser):
    """Collects what a page loads, the number of cells in its tables' rows, and whether tags close."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.tables = [], [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.loads += [named[key] for key in ("src", "href") if key in named]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append(0)
        if tag in ("td", "th"):
            self.tables[-1][-1] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_self_contained_and_well_formed(written):
    reader = Page()
    reader.feed(written[1]["demo.html"].read_text())
    assert reader.open == [] and reader.tables
    assert all(len(set(cells)) == 1 for cells in reader.tables), "every row has as many cells as its head"
    figures = [name for name in written[1] if name.endswith(".svg")]
    assert len(reader.loads) == len(figures)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in reader.loads)


def test_html_escapes_what_records_say(tmp_path, make_study):
    store = Store(tmp_path)
    arms = [{"init": "lora", "label": "lora"}, {"init": "pissa", "label": "pissa"}]
    make_study(store, arms, tuning=None, seeds=(0, 1), question="<script>alert(1)</script>")
    text = html.render(report(store))
    assert "<script>alert" not in text and "&lt;script&gt;" in text
    assert "not a tuned comparison" in text and "2 final seeds" in text


def test_an_unfinished_study_says_what_is_missing(tmp_path, make_study):
    store = Store(tmp_path)
    arms = [{"init": "lora", "label": "lora"}, {"init": "pissa", "label": "pissa"}]
    make_study(store, arms, stop="final", seeds=(0, 1, 2))
    text = words(store)
    assert "nothing can be compared" in text
    assert "The study is not complete: 6 runs of the final round are missing." in text


def test_stale_and_foreign_records_are_reported_not_mixed(tmp_path, make_study):
    store = Store(tmp_path)
    arms = [{"init": "lora", "label": "lora"}, {"init": "pissa", "label": "pissa"}]
    make_study(store, arms, tuning=None, seeds=(0, 1))
    before = words(store)
    old = store.read("demo")[0]
    old.identity = old.identity | {"versions": {"training": 0}}
    old.run_id = run_id(old.identity)
    old.provenance, old.scores = {"finished": "2020-01-01"}, {"test": {"score": 0.01, "n": 200}}
    store.write(old)
    after = words(store)
    assert f"1 stale records are left out: {old.run_id} (another versions.training)." in after
    assert after.split("## Threats")[0] == before.split("## Threats")[0]


def test_payload_for_tracking_is_plain(demo, written, tmp_path):
    sweep = Store(tmp_path)
    first = next(record for record in demo.store.read("demo") if record.label == "lora")
    sweep.write(replace(first, name="sweep"))
    payload = wandb_payload(demo.store, demo.name)
    assert len(payload["rows"]) == 12 and payload["rows"][0]["arm"] == "lora"
    assert all(value == value for row in payload["rows"] for value in row.values()), "null, never NaN"
    assert wandb_payload(sweep, "sweep")["rows"][0]["method"] == "lora"
    assert set(payload["figures"]) >= {"pareto", "training"} and all(p.is_file() for p in payload["figures"].values())


def test_rescoring_judges_a_study_again(demo):
    text, _ = write_rescored(demo.store, demo.name)
    assert "| pissa" in text and "Judged by lm_eval_strict" not in text, "the same answers, the same verdicts"
    assert "Every verdict of the study is the same" in text or "Judged by" in text


def test_rescoring_takes_final_runs_alone_and_gives_a_shared_run_to_both_arms(demo):
    study = read_study(demo.spec, demo.store)
    shared = study.finals["words", "lora"]
    twins = replace(study, finals=study.finals | {("words", "pissa"): shared})
    table = rescored(demo.store, runs_of_study(twins, "test"))
    finals = {(arm, run.run_id) for (_, arm), runs in twins.finals.items() for run in runs.values()}
    assert set(zip(table["row"], table["run_id"], strict=True)) == finals
    assert any("words pissa" in line and "instead of better" in line for line in verdict_changes(twins, table))
    nothing = verdict_changes(twins, table[table["row"] != "lora"])
    assert nothing[0].startswith("No verdict was judged again")


def test_no_such_study_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no study 'x'"):
        write_study(Store(tmp_path), "x")


def test_a_halved_study_shows_its_screening(tmp_path, make_study):
    store = Store(tmp_path)
    spec = make_study(store, ["lora", "pissa"], tuning={"halving": {"steps": 20, "keep": 0.5}}, fixed={"steps": 60})
    study = read_study(spec, store)
    assert study.complete and len(study.screened) >= 2 * 6 * 2 and len(study.trials) == 2 * 3 * 2
    text, paths = write_study(store, "demo")
    assert {"screening.png", "learning_rate.png"} <= {path.name for path in paths}
    assert "Successive halving, alike for all: all rates at 20 steps" in text


@pytest.mark.parametrize(("score", "end"), [(0.0, "floor"), (1.0, "ceiling")])
def test_at_the_floor_or_ceiling_nothing_is_named_and_nothing_advised(tmp_path, make_study, monkeypatch, score, end):
    import made_study

    truth = {arm: (best, score, 1e9, trained) for arm, (best, _, _, trained) in made_study.TRUTH.items()}
    monkeypatch.setattr(made_study, "TRUTH", truth)
    arms = [{"init": "lora", "label": "lora"}, {"init": "pissa", "label": "pissa"}]
    store = Store(tmp_path)
    make_study(store, arms, made={"spread": 0})
    for record in store.read("demo"):
        record.task["majority"] = 0.25
        store.write(record)
    text = words(store)
    assert f"Nothing can be found: every run of words is at the {end} of the metric." in text
    assert "a new study with" not in text and "leads at every" not in text and "points over" not in text
    assert "no winner (validation means, no test)" in text
    assert ("is below the majority class's share (25.0 %)" in text) == (end == "floor")
    assert "is at the majority class's share" not in text and f"near the {end} arms look alike" in text


def test_the_launcher_is_named_and_what_a_pack_may_change():
    from lorax.reports.protocol import _launched

    def run(launcher, lanes=0, dtype="bf16-autocast"):
        pack = {"lanes": list(range(lanes))} if lanes else None
        return RunRecord("r", "n", "finished", {}, {"dtype": dtype}, provenance={"launcher": launcher, "pack": pack})

    assert _launched([run(None)]) == []
    assert _launched([run("solo"), run("BasicLauncher")]) == [
        "Launcher BasicLauncher and solo: every final run was trained alone."
    ]
    packed = [run("PackedLauncher", 8), run("PackedLauncher", 4), run("PackedLauncher")]
    assert _launched(packed) == [
        "Launcher PackedLauncher: 2 final runs in packs of 4 to 8, 1 alone. A packed run has the id of the same run "
        "alone, and its losses up to rounding: bf16-autocast within about 1e-3."
    ]


def test_a_study_that_claims_non_inferiority_says_what_it_tests(make_study, tmp_path):
    store = Store(tmp_path)
    spec = make_study(store, ["lora", {"init": "lora", "label": "rslora", "scaling": "rslora"}, "svft"],
                      tuning=None, claim="non_inferior", seeds=range(6))  # fmt: skip
    text, values = words(store), main_table(read_study(spec, store)).set_index("arm")
    assert "| not worse by 2.0 (non-inferior) |" in text and "worse by at least 13.8 |" in text
    assert "words: rslora is not worse than lora by 2.0 points (non-inferior)" in text
    assert "Claim: non-inferior, not worse than lora by 2.0 points: the lower end" in text
    assert "one-sided at 2.5 % over the 2 comparisons" in text and "is called non-inferior with probability" in text
    assert values.loc["rslora", "verdict"] == "non_inferior" and values.loc["rslora", "p_non_inferior_adjusted"] < 0.05
    assert "equivalent" not in text.replace("Nothing is called equivalent", "")
