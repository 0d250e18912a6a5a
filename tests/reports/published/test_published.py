"""Others' tables: what 63 published rows, and item logs, can and cannot separate."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint, proportions_ztest

from lorax.errors import UserError
from lorax.reports.published.read import infer_items, read_folder
from lorax.reports.published.separability import conclusion, interval, separate, write_imported

PEFT = Path(__file__).parents[3].parent / "shared" / "data" / "peft_method_comparison" / "results"


def peft_json(folder, name, accuracy, lr=1e-4):
    data = {
        "run_info": {"experiment_name": name, "train_config": {"seed": 0, "optimizer_kwargs": {"lr": lr}}},
        "train_info": {
            "num_trainable_params": 10,
            "metrics": [{"valid accuracy": 0.1}, {"test accuracy": accuracy}],
        },
    }
    (folder / f"{name}.json").write_text(json.dumps(data))


@pytest.fixture
def published(tmp_path):
    """The 63 published rows where they are at hand, else rows with the same spread."""
    if PEFT.is_dir():
        return PEFT
    for i, right in enumerate([*range(694, 616, -4), *range(600, 0, -14)]):
        peft_json(tmp_path, f"m{i}", right / 1319, lr=1e-4 if i % 2 else 1e-3)
    return tmp_path


def test_of_the_190_pairs_among_the_top_20_none_survives(published):
    rows = read_folder(published)["test accuracy"]
    assert {row.n for row in rows} == {1319}
    result = separate(rows)
    assert (result.top_pairs, result.top_corrected) == (190, 0) and result.top_raw > 0
    text = "\n".join(conclusion(result))
    assert "Of the 190 pairs among the top 20, none survives Holm's correction" in text
    assert "one run a row (all at seed 0)" in text and "not tuned alike" in text
    assert len(set(result.table["letters"].iloc[:1]) & set(result.table["letters"].iloc[-1])) == 0


def test_counts_agree_with_statsmodels(published):
    rows = sorted(read_folder(published)["test accuracy"], key=lambda row: (-row.score, row.name))[:20]
    counts = [round(row.score * row.n) for row in rows]
    p = [proportions_ztest(pair, [1319, 1319])[1] for pair in itertools.combinations(counts, 2)]
    result = separate(rows)
    assert result.raw == sum(value < 0.05 for value in p)
    assert result.corrected == multipletests(p, method="holm")[0].sum()
    np.testing.assert_allclose(interval(rows[0]), proportion_confint(counts[0], 1319, method="wilson"), atol=1e-12)


def samples(folder, model, right, stamp="2026-01-01T00-00-00.0", task="gsm8k"):
    (folder / model).mkdir(exist_ok=True)
    lines = [
        {
            "doc_id": i,
            "doc_hash": "h",
            "filter": "strict-match",
            "metrics": ["exact_match"],
            "exact_match": float(r),
        }
        for i, r in enumerate(right)
    ]
    path = folder / model / f"samples_{task}_{stamp}.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_item_logs_are_compared_item_by_item(tmp_path):
    """Nine discordant items all one way: McNemar sees what two overlapping intervals hide."""
    a = np.arange(200) < 100
    samples(tmp_path, "base", a, stamp="2025-01-01T00-00-00.0")
    samples(tmp_path, "base", a)
    samples(tmp_path, "tuned", a | (np.arange(200) < 109))
    tables = read_folder(tmp_path)
    assert list(tables) == ["gsm8k exact_match (strict-match)"]
    result = separate(tables["gsm8k exact_match (strict-match)"])
    assert result.paired and result.raw == 1 and result.pairs == 1
    low, high = result.table["low"].iloc[0], result.table["high"].iloc[1]
    assert low < high, "unpaired they overlap"


def test_files_are_written_and_bad_input_is_one_line(tmp_path, published):
    text, paths = write_imported(published, tmp_path / "results")
    assert text.count("\n| ") >= 60 and all(path.is_file() for path in paths)
    assert paths[0].parent == tmp_path / "results" / "tables"
    with pytest.raises(UserError, match="no folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither PEFT result JSONs nor"):
        read_folder(tmp_path / "empty")
    path = samples(tmp_path, "bad", [1])
    path.write_text("{}\n")
    with pytest.raises(UserError, match="line 1: no scored sample"):
        read_folder(tmp_path / "bad")


def test_number_of_items_is_worked_out_or_asked_for():
    assert infer_items([k / 1319 for k in (0, 7, 694, 1319)]) == 1319
    with pytest.raises(UserError, match="items=<n>"):
        infer_items([0.12345678901, 0.3333], most=1000)


def test_files_below_and_files_without_facts_are_read(tmp_path):
    """Others' files: a folder deeper, no rate, no configuration at all, values of another kind."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        peft_json(tmp_path / place, "same", 0.5)
    path = tmp_path / "b" / "same.json"
    for damage in ({"optimizer_kwargs": {}}, {"optimizer_kwargs": None, "seed": "x"}, {}, None, []):
        data = json.loads(path.read_text())
        data["run_info"]["train_config"] = damage
        path.write_text(json.dumps(data))
        rows = read_folder(tmp_path, 10)["test accuracy"]
        assert [row.name for row in rows] == ["a/same", "b/same"]
        assert [row.facts["lr"] for row in rows] == [1e-4, None]
        assert "1 of 2 rows share the learning rate 0.0001; 1 name none" in "\n".join(conclusion(separate(rows)))
        write_imported(tmp_path, tmp_path / "results", 10)


@pytest.mark.parametrize(
    ("rates", "line"),
    [
        ([None, None, None], "No file names its learning rate"),
        ([1e-4, 1e-4, 1e-4], "3 of 3 rows share the learning rate 0.0001: none was tuned for its method."),
        (
            [1e-4, 1e-4, 1e-3],
            "2 of 3 rows share the learning rate 0.0001; 1 has its own: the rows were not tuned",
        ),
        ([1e-4, 1e-4, None], "2 of 3 rows share the learning rate 0.0001; 1 name none: none was tuned"),
    ],
)
def test_what_is_said_of_the_rates(tmp_path, rates, line):
    for at, lr in enumerate(rates):
        peft_json(tmp_path, f"m{at}", at / 10, lr)
    assert line in "\n".join(conclusion(separate(read_folder(tmp_path, 10)["test accuracy"])))


@pytest.mark.parametrize("accuracy", ["0.5", 1.5, -0.1, None, [], True])
def test_a_score_that_is_none_is_named_with_its_file(tmp_path, accuracy):
    peft_json(tmp_path, "odd", accuracy)
    with pytest.raises(UserError, match="odd.json: test accuracy .*between 0 and 1"):
        read_folder(tmp_path, 10)
