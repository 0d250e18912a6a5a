"""Values that are no text: read as what they are, or refused by the line; never printed as Python would."""

import datetime
import decimal
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from lorax.errors import UserError
from lorax.tasks import load
from lorax.tasks.readers import read, text
from lorax.tasks.readers.rows import written

N = 40


def task(path, values, **spec):
    """A task of 40 rows whose answers are `values`, over and over."""
    answers = (values * N)[:N]
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "answer": answers[i]}) + "\n" for i in range(N)))
    return load({"name": "jsonl", "path": str(path)} | spec, 0)


@pytest.mark.parametrize("value, expected", [
    (True, "true"), (2, "2"), (10**40, "1" + "0" * 40), (0.5, "0.5"), (1.0, "1.0"), ("007", "007"), (" nan ", "nan"),
    ("None", "None"), ("[1, 2]", "[1, 2]"),
])  # fmt: skip
def test_scalars_are_read(tmp_path, value, expected):
    assert task(tmp_path / "a.jsonl", [value]).train[0].answer == expected


@pytest.mark.parametrize("value, words", [
    (float("nan"), "line 1: field 'answer' is empty"),
    (None, "line 1: field 'answer' is empty"),
    ("  ", "line 1: field 'answer' is empty"),
    (float("inf"), "line 1: field 'answer' is an infinite number, not one text"),
    (["a", "b"], "is a list of 2 texts, not one text"),
    ([], "is a list of 0 values"),
    ([1, "a"], "is a list of 2 values"),
    ({"text": ["a"]}, "is an object with 'text', not one text"),
    ("\ud800", r"holds half a surrogate pair \(.ud800\): no text"),
    ("a\x00b", "holds a NUL character: no text"),
])  # fmt: skip
def test_what_is_no_text_is_refused_where_it_is_used_and_nowhere_else(tmp_path, value, words):
    with pytest.raises(UserError, match=words):
        task(tmp_path / "a.jsonl", [value])
    path = tmp_path / "unused.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "answer": "a", "more": value}) + "\n" for i in range(N)))
    assert len(load({"name": "jsonl", "path": str(path)}, 0).train) > 20


def test_a_name_that_occurs_twice_is_refused_where_it_is_used(tmp_path):
    (tmp_path / "a.csv").write_text("text,text,label\na,b,1\n")
    (tmp_path / "a.jsonl").write_text('{"text": 1, "text": 2, "label": 1}\n')
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["1"])], ["text", "text", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        (row,) = read(tmp_path / name)
        assert text(row, "label") == "1"
        with pytest.raises(UserError, match="field 'text' occurs 2 times"):
            text(row, "text")


COLUMNS = {
    "large": (pyarrow.array(["a", "b"], pyarrow.large_string()), "a"),
    "category": (pyarrow.array(["u", "v"]).dictionary_encode(), "u"),
    "whole": (pyarrow.array([1, None], pyarrow.int64()), "1"),
    "decimal": (pyarrow.array([decimal.Decimal("1.50")] * 2), "1.50"),
    "truth": (pyarrow.array([True, False]), "true"),
    "date": (pyarrow.array([datetime.date(2024, 1, 2)] * 2), "2024-01-02"),
    "time": (pyarrow.array([datetime.datetime(2024, 1, 2, 3)] * 2), "2024-01-02 03:00:00"),
    "nan": (pyarrow.array([float("nan"), 1.0]), ""),
    "null": (pyarrow.nulls(2), ""),
    "list": (pyarrow.array([["x", "y"], ["x"]]), "a list of 2 texts"),
    "dict": (pyarrow.array([{"a": 1}] * 2), "an object with 'a'"),
    "nested": (pyarrow.array([[{"a": [1]}]] * 2), "a list of 1 objects"),
    "image": (pyarrow.array([{"bytes": b"x", "path": "p"}] * 2), "an object with 'bytes', 'path'"),
    "binary": (pyarrow.array([b"xyz"] * 2), "binary .3 bytes."),
    "duration": (pyarrow.array([datetime.timedelta(1)] * 2), "a value of type timedelta"),
    "far": (pyarrow.array([10**15] * 2, pyarrow.timestamp("s")), "cannot be read"),
}


@pytest.mark.parametrize("key", list(COLUMNS))
def test_columns_of_parquet(tmp_path, key):
    """All of them lie in the file; the one that is asked for is what it is, or refused by its row."""
    table = pyarrow.table({name: values for name, (values, _) in COLUMNS.items()})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (row, _), expected = read(tmp_path / "a.parquet"), COLUMNS[key][1]
    try:
        assert written(row, key) == expected
    except UserError as error:
        assert re.search(rf"row 0: field '{key}' .*{expected}", str(error))


def test_unused_columns_of_parquet_do_not_matter_and_whole_numbers_stay_whole(tmp_path):
    columns = {name: pyarrow.concat_arrays([values] * (N // 2)) for name, (values, _) in COLUMNS.items()}
    answers = pyarrow.array([*range(N - 1), None], pyarrow.int64())
    table = pyarrow.table({**columns, "prompt": [f"q{i}" for i in range(N)], "answer": answers})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="row 39: field 'answer' is empty"):
        load({"name": "jsonl", "path": str(tmp_path / "a.parquet")}, 0)
    pyarrow.parquet.write_table(table.slice(0, N - 1), tmp_path / "a.parquet")
    answers = {example.answer for example in load({"name": "jsonl", "path": str(tmp_path / "a.parquet")}, 0).train}
    assert answers < set(map(str, range(N)))
    with pytest.raises(UserError, match="no field 'anwser'; did you mean 'answer'"):
        load({"name": "jsonl", "path": str(tmp_path / "a.parquet"), "answer": "anwser"}, 0)


def labelled(path, labels):
    path.write_text("".join(json.dumps({"text": f"t{i}", "label": labels[i % len(labels)]}) + "\n" for i in range(60)))
    return load({"name": "text_classification", "path": str(path)}, 0)


@pytest.mark.parametrize("labels, names", [
    ([1, 0], ("0", "1")), ([1.0, 0.0], ("0.0", "1.0")), ([True, False], ("false", "true")),
    (["007", "7"], ("007", "7")), (["v1.5", "v2"], ("v1.5", "v2")), (["2024-01", "2024-02"], ("2024-01", "2024-02")),
    (["1" * 40, "1e300"], ("1" * 40, "1e300")),
])  # fmt: skip
def test_classes(tmp_path, labels, names):
    assert labelled(tmp_path / "a.jsonl", labels).labels == names


@pytest.mark.parametrize("labels, words", [
    (["5.000", "3.800", "0.25"], r"numbers on a scale \(0.25, 3.800\), not classes"),
    ([1.5, 2.0], "numbers on a scale"),
    ([1, 1.0], "classes '1' and '1.0' differ only in how they are written"),
    ([".5", "1.", "2e-5"], "numbers on a scale"),
    ([1e-5, 2.0], "numbers on a scale"),
    (["TRUE", "true"], "classes 'TRUE' and 'true' differ only"),
    (["a b", "a  b"], "classes 'a  b' and 'a b' differ only"),
    (["caf\u00e9", "cafe\u0301"], "differ only in how they are written"),
    ([["a"], ["a", "b"]], "line 1: field 'label' is a list of 1 texts"),
    ([float("nan"), "a"], "line 1: field 'label' is empty"),
])  # fmt: skip
def test_labels_that_are_no_classes(tmp_path, labels, words):
    with pytest.raises(UserError, match=words):
        labelled(tmp_path / "a.jsonl", labels)


def test_a_class_written_otherwise_in_another_file_is_named(tmp_path):
    train = tmp_path / "train.csv"
    train.write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(60)))
    (tmp_path / "test.jsonl").write_text('{"text": "t", "label": 1.0}\n')
    with pytest.raises(UserError, match="classes '1' and '1.0' differ only"):
        load({"name": "text_classification", "path": str(tmp_path)}, 0)
