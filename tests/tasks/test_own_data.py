"""The user's own data and published files: every format, every complaint with its line."""

import json

import pandas
import pytest

from lorax.errors import UserError
from lorax.tasks import load

ROWS = [{"prompt": f"question {i}", "answer": f"a{i}"} for i in range(40)]
TEXTS = [{"text": f"text {i}", "label": "yes" if i % 3 else "no"} for i in range(60)]


def write(path, rows):
    if path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pandas.DataFrame(rows).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_formats_give_the_same_task(tmp_path, suffix):
    path = write(tmp_path / f"mine.{suffix}", ROWS)
    reference = write(tmp_path / "reference.jsonl", ROWS)
    task = load({"name": "jsonl", "path": path}, 0)
    assert task.digest == load({"name": "jsonl", "path": reference}, 0).digest
    assert {row["answer"] for row in ROWS} == {
        e.answer for part in ("train", "validation", "test", "heldout") for e in getattr(task, part)
    }


def test_folder_with_official_splits_and_other_field_names(tmp_path):
    write(tmp_path / "train.jsonl", [{"q": row["prompt"], "a": row["answer"]} for row in ROWS])
    write(tmp_path / "test.csv", [{"q": "Question 3", "a": "a3"}, {"q": "new", "a": "b"}])
    task = load({"name": "jsonl", "path": str(tmp_path), "prompt": "q", "answer": "a"}, 0)
    assert {e.prompt for e in task.test} == {"Question 3", "new"}
    assert "question 3" not in {e.prompt for e in task.train + task.validation + task.heldout}
    assert task.notes["duplicates"] == 1


def test_classes_are_named_counted_and_checked(tmp_path):
    train = write(tmp_path / "train.csv", TEXTS)
    task = load({"name": "text_classification", "path": train}, 0)
    assert task.labels == ("no", "yes") and task.kind == "classification"
    assert all(task.labels[e.label] == e.answer for e in task.train)
    assert 0.4 < task.majority < 0.9
    assert task.score(task.test[0], task.test[0].answer)["score"] == 1
    test = write(tmp_path / "test.jsonl", [{"text": "t", "label": "yess"}])
    with pytest.raises(UserError, match="class 'yess' in test; did you mean 'yes'"):
        load({"name": "text_classification", "train": train, "test": test}, 0)


@pytest.mark.parametrize("name, content, words", [
    ("a.jsonl", '{"prompt": "p", "answer": "a"}\n{"prompt": oops}\n', r"a.jsonl, line 2: not JSON"),
    ("a.jsonl", '{"prompt": "p", "answer": "a"}\n\n[1]\n', r"line 3: not a JSON object but list"),
    ("a.jsonl", '{"promt": "p", "answer": "a"}\n', r"line 1: no field 'prompt'; did you mean 'promt'"),
    ("a.jsonl", '{"prompt": "p", "answer": ""}\n', r"line 1: field 'answer' is empty"),
    ("a.csv", "prompt,answer\np,a\nq\n", r"line 3: 1 column where the header has 2"),
    ("a.csv", "prompt,answer\np,a,b\n", r"line 2: 3 columns where the header has 2"),
    ("a.csv", 'prompt,answer\n"p,a\nq\n', r"line 2: unexpected end of data"),
    ("a.json", '[\n{"prompt": 1,}]', r"a.json, line 2: not JSON"),
    ("a.parquet", "not parquet", r"a.parquet: "),
    ("a.doc", "p", r"cannot read .doc"),
    ("a.jsonl", "", r"no rows; the file is empty"),
    ("a.csv", "prompt,answer\n", r"no rows under the header"),
])  # fmt: skip
def test_unreadable_rows_are_named_by_file_and_line(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        load({"name": "jsonl", "path": str(tmp_path / name)}, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec, words", [
    ({"name": "jsonl"}, "task.path="),
    ({"name": "jsonl", "path": "./nope.jsonl"}, "no such file"),
    ({"name": "jsonl", "path": "nope.csv"}, "no such file"),
    ({"name": "jsonl", "train": "nope.csv"}, "task.train=nope.csv: no such file"),
    ({"name": "jsonl", "path": "x", "extractor": "hash"}, "hash_int"),
    ({"name": "jsonl", "path": "x" * 5000}, r"task.path=x{40}\.\.\.: 5,000 characters are no path"),
    ({"name": "gsm8k", "path": ["x"]}, r"task.path=\['x'\]: one text is needed$"),
    ({"name": "banking77", "path": "x" * 5000}, "5,000 characters are no path"),
    ({"name": "jsonl", "path": "x" * 300}, r"x\.\.\.: a name of more than 255 bytes"),
    ({"name": "jsonl", "train": "x" * 300 + ".csv"}, "a name of more than 255 bytes"),
    ({"name": "jsonl", "path": "x", "quotes": "txt"}, "task.quotes=txt: did you mean 'text'"),
    ({"name": "jsonl", "path": "x", "columns": ["a", "a"]}, "a list of different names"),
    ({"name": "jsonl", "path": "x", "columns": "a"}, "a list of different names"),
    ({"name": "gsm8k", "path": "/nope"}, "no such file or folder"),
    ({"name": "banking77", "path": "./nope"}, "no such folder"),
])  # fmt: skip
def test_missing_files_and_options(spec, words):
    with pytest.raises(UserError, match=words):
        load(spec, 0)


def test_gsm8k_solutions_golds_and_notes(tmp_path):
    rows = [
        {"question": f"q{i}", "answer": f"It is 2*{i} = <<2*{i}={2 * i}>>{2 * i}.\n#### 1,{i:03d}"} for i in range(60)
    ]
    write(tmp_path / "train.jsonl", rows[:50])
    write(tmp_path / "test.jsonl", rows[50:])
    task = load({"name": "gsm8k", "path": str(tmp_path)}, 0)
    example = next(e for e in task.test if e.prompt == "q51")
    assert example.gold == "1051" and "<<" not in example.answer
    assert task.score(example, example.answer) == {"score": 1, "tolerant": 1}
    assert task.score(example, "so 1051") == {"score": 0, "tolerant": 1}
    with_notes = load({"name": "gsm8k", "path": str(tmp_path), "annotations": True}, 0)
    assert any("<<" in e.answer for e in with_notes.train)
    write(tmp_path / "test.jsonl", [{"question": "q", "answer": "7"}])
    with pytest.raises(UserError, match="test.jsonl, line 1: .*####"):
        load({"name": "gsm8k", "path": str(tmp_path)}, 0)


def test_published_intent_files(tmp_path):
    """The three sets in their authors' own formats."""
    banking, clinc, snips = (tmp_path / name for name in ("banking", "clinc", "snips"))
    for folder in (banking, clinc, snips):
        folder.mkdir()
    rows = [{"text": f"query, {i}", "category": "abc"[i % 3]} for i in range(30)]
    write(banking / "train.csv", rows)
    write(banking / "test.csv", [{"text": "new", "category": "b"}])
    task = load({"name": "banking77", "path": str(banking)}, 0)
    assert task.labels == ("a", "b", "c") and len(task.test) == 1 and not task.shots

    pairs = [[f"say {i}", "xy"[i % 2]] for i in range(30)]
    data = {"train": pairs, "val": [["v", "x"]], "test": [["t", "y"]], "oos_train": [["o", "oos"]], "oos_val": [],
            "oos_test": [["p", "oos"]]}  # fmt: skip
    (clinc / "data_full.json").write_text(json.dumps(data))
    task = load({"name": "clinc150", "path": str(clinc)}, 0)
    assert task.labels == ("x", "y") and [e.prompt for e in task.validation] == ["v"]
    assert load({"name": "clinc150", "path": str(clinc), "oos": True}, 0).labels == ("oos", "x", "y")

    for intent in ("Play", "Rate"):
        for part, count in (("train", 20), ("validate", 2)):
            queries = [
                {"data": [{"text": f"{intent} {part} "}, {"text": f"café {i}", "entity": "e"}]} for i in range(count)
            ]
            name = f"train_{intent}_full.json" if part == "train" else f"validate_{intent}.json"
            (snips / name).write_bytes(json.dumps({intent: queries}, ensure_ascii=False).encode("latin-1"))
    task = load({"name": "snips", "path": str(snips)}, 0)
    assert task.labels == ("Play", "Rate") and len(task.test) == 4
    assert "Play validate café 0" in {e.prompt for e in task.test}
