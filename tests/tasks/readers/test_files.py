"""Kinds of files and folders: what is read, and the one line for what is not."""

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow
import pytest

from lorax.errors import UserError
from lorax.tasks import load
from lorax.tasks.readers import Format, read, read_splits, text

ROWS = [{"a": f"ä{i}", "b": i} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def zipped(content):
    return gzip.compress(content, mtime=0)  # the same bytes, and so the same name of a case, at any time


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fields(path, **format):
    return [fields for _, fields in read(path, Format(**format))]


@pytest.mark.parametrize("name, content", [
    ("a.jsonl", LINES), ("A.JSONL", LINES), ("a.ndjson", LINES), ("a.json", LINES), ("a.json", "\ufeff" + LINES),
    ("a.json", json.dumps(ROWS)), ("a.json", json.dumps(ROWS, indent=2)),
    ("a.json", json.dumps({"version": 1, "data": ROWS})),
    ("a.jsonl.gz", zipped(LINES.encode())), ("a.JSONL.GZ", zipped(LINES.encode())),
    ("a.jsonl.bz2", bz2.compress(LINES.encode())), ("a.jsonl.xz", lzma.compress(LINES.encode())),
    ("a.json.gz", zipped(json.dumps(ROWS).encode())),
])  # fmt: skip
def test_json_in_every_shape_gives_the_same_rows(tmp_path, name, content):
    assert fields(written(tmp_path / name, content)) == ROWS


def test_tables_are_unpacked_and_known_by_suffixes_in_any_case(tmp_path):
    assert fields(written(tmp_path / "a.CSV.gz", zipped(b"a,b\n1,2\n"))) == [{"a": "1", "b": "2"}]
    for name in ("a.TSV", "a.tab", "a.txt"):
        assert fields(written(tmp_path / name, "a\tb\n1\t2\n")) == [{"a": "1", "b": "2"}]
    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as stream:
        stream.write(LINES.encode())
    assert fields(tmp_path / "a.jsonl.zst") == ROWS


@pytest.mark.parametrize("name, content, words", [
    ("a.jsonl", '{"a": 1}\n{"a": ' + "1" * 5000 + "}\n", "line 2: a whole number of more than 4,300 digits"),
    ("a.jsonl", '{"a": 1}\n{"a": ' + "[" * 100_000 + "}\n", "line 2: nested too deeply"),
    ("a.json", "[" * 100_000, "nested too deeply"),
    ("a.jsonl", '{"a": 1}\n{"a": "café"}\n'.encode("latin-1"), r"line 2: not UTF-8 \(byte 0xe9\)"),
    ("a.json", '[{"a": 1},\n{"a": "café"}]'.encode("latin-1"), r"line 2: not UTF-8 \(byte 0xe9\)"),
    ("a.jsonl", '{"a": 1}\n{"a": "\x00"}\n', "line 2: a NUL byte"),
    ("a.jsonl", "", "the file is empty"),
    ("a.jsonl", "\n\n", "the file is empty"),
    ("a.json", "[]", "the file is empty"),
    ("a.json", "[1]", "item 1: not a JSON object but int"),
    ("a.json", '{"train": [{"a": 1}], "test": []}', "2 lists .train, test.: write each into a file of its own"),
    ("a.json", '{"a": {"0": 1, "1": 2}}', "orient='records'"),
    ("a.json", '{"a": 1}', "not one object"),
    ("a.json", '"a"', "not str"),
    ("a.json", '{"a": 1}\n{"a": oops}\n', "line 2: not JSON"),
    ("a.jsonl.gz", zipped(LINES.encode() * 99)[:-20], "a.jsonl.gz: Compressed file ended"),
    ("a.jsonl.gz", LINES, "a.jsonl.gz: Not a gzipped file"),
    ("a.jsonl.xz", LINES, "a.jsonl.xz: "),
    ("a.jsonl.bz2", LINES, "a.jsonl.bz2: "),
    ("a.jsonl.zst", LINES, "a.jsonl.zst: "),
    ("a.jsonl", zipped(LINES.encode()), "a.jsonl: packed with gzip by its content"),
    ("a.csv", b"PK\x03\x04xl", "a.csv: an archive or a workbook"),
    ("a.json", b"PAR1\x15\x9c", "a.json: parquet by its content"),
    ("a.parquet", LINES, "a.parquet: "),
    ("a.arrow", LINES, "a.arrow: "),
    ("a.pkl", "x", "can run code"),
    ("a.jsn", "x", "cannot read .jsn; did you mean '.json'"),
    ("a", "x", "cannot read a file without suffix; choose from .jsonl"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words) as caught:
        read(written(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_a_file_is_one_line(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match="a folder, not a file"):
        read(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="task.train=.*: a folder, not a file; task.path takes folders"):
        read_splits("", files={"train": str(tmp_path)})


def counts(folder, **options):
    return {split: len(rows) for split, rows in read_splits(str(folder), **options).items()}


def test_shards_and_folders_of_splits_are_read_whole_and_in_order(tmp_path):
    for place, suffix in (("shards", ""), ("hub", "data/")):
        for number in range(3):
            row = json.dumps({"a": number}) + "\n"
            written(tmp_path / place / f"{suffix}train-0000{number}-of-00003.jsonl", row)
        written(tmp_path / place / f"{suffix}validation-00000-of-00001.jsonl", LINES)
        assert counts(tmp_path / place) == {"train": 3, "validation": 5}
        assert [row["a"] for _, row in read_splits(str(tmp_path / place))["train"]] == [0, 1, 2]
    for split in ("train", "test"):
        for part in "ab":
            written(tmp_path / "inner" / split / f"{part}.jsonl", LINES)
    assert counts(tmp_path / "inner") == {"train": 10, "test": 10}
    for number in range(2):
        written(tmp_path / "one" / f"part-0000{number}-of-00002.jsonl.gz", zipped(LINES.encode()))
    assert counts(tmp_path / "one") == {"train": 10}
    (tmp_path / "shards" / "train-00001-of-00003.jsonl").unlink()
    with pytest.raises(UserError, match="2 of 3 shards like train-00000-of-00003.jsonl"):
        counts(tmp_path / "shards")


def test_a_folder_that_does_not_say_what_is_train_is_one_line_with_the_way(tmp_path):
    written(tmp_path / "mine.jsonl", LINES)
    written(tmp_path / "README.md", "x")
    with pytest.raises(UserError, match="it holds mine.jsonl, none called train.*task.train=<file>"):
        counts(tmp_path)
    assert counts("", files={"train": str(tmp_path / "mine.jsonl")}) == {"train": 5}
    written(tmp_path / "train.jsonl", LINES)
    written(tmp_path / "train.csv", "a,b\n1,2\n")
    with pytest.raises(UserError, match="holds train.csv and train.jsonl; say which with task.train=<file>"):
        counts(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it holds nothing"):
        counts(tmp_path / "empty")


def test_folders_that_save_to_disk_wrote(tmp_path):
    labels = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(40)], "label": [0, 1] * 20}, features=labels)
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made, "test": made.select(range(4))}).save_to_disk(str(tmp_path / "both"))
    assert counts(tmp_path / "one") == {"train": 40} and counts(tmp_path / "both") == {"train": 40, "test": 4}
    task = load({"name": "text_classification", "path": str(tmp_path / "one")}, 0)
    assert task.labels == ("no", "yes") and task.notes["data"] == "read 40 rows, kept 40, dropped 0"
    (shard,) = (tmp_path / "one").glob("*.arrow")
    assert fields(shard)[1] == {"text": "t1", "label": 1}
    with pytest.raises(UserError, match="save_to_disk wrote .* in it: task.path="):
        counts(tmp_path)
    shard.write_bytes(b"broken")
    with pytest.raises(UserError, match="task.path=.*one: ") as caught:
        counts(tmp_path / "one")
    assert "\n" not in str(caught.value)


def test_of_a_hub_dataset_only_the_fields_that_are_used_are_read(monkeypatch):
    features = datasets.Features({
        "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"]),
        "more": datasets.List(datasets.Value("int64")),
    })  # fmt: skip
    columns = {"text": ["a", "b", "c"], "label": [0, None, -1], "more": [[1], [2], [3]]}
    made = datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns, features=features)})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset, revision: made)
    (rows,) = read_splits("owner/name", format=Format(used=frozenset(["text", "label"]))).values()
    assert [row["label"] for _, row in rows] == ["no", None, -1]
    with pytest.raises(UserError, match="owner/name train, row 0: field 'more' was not read"):
        text(rows.rows[0], "more")
    monkeypatch.setattr(datasets, "load_dataset", lambda *words, **more: datasets.DatasetDict({"a": made["train"]}))
    with pytest.raises(UserError, match="task.path=owner/name: has the splits a; train is needed"):
        read_splits("owner/name")


@pytest.mark.parametrize("package, path", [("datasets", "saved"), ("pyarrow", "a.parquet")])
def test_a_missing_package_is_one_line_with_the_way(tmp_path, monkeypatch, package, path):
    written(tmp_path / "saved" / "dataset_dict.json", "{}")
    written(tmp_path / "a.parquet", "x")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=f"needs the package {package}: pip install {package}"):
        read_splits(str(tmp_path / path))
