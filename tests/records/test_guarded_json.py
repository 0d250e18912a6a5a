"""The one reader of JSON: what is no JSON, or too much of it, is one line that names the file."""

from __future__ import annotations

import gzip
import json

import pytest

from lorax.records import Damaged, parse_json, read_json, read_lines

REFUSED = {
    "text": (b"hello", "not JSON"),
    "cut": (b'{"a": [1', "not JSON"),
    "empty": (b"", "not JSON"),
    "bytes": (b"\xff\xfe{}", "not UTF-8"),
    "lists": (b"[" * 200 + b"]" * 200, "nested more than 100 deep"),
    "many lists": (b"[" * 10**5 + b"]" * 10**5, "nested"),
    "mappings": (b'{"a":' * 150 + b"1" + b"}" * 150, "nested more than 100 deep"),
    "twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' twice"),
    "nan": (b'{"a": NaN}', "NaN is no JSON number"),
    "infinity": (b"[-Infinity]", "-Infinity is no JSON number"),
    "digits": (b"9" * 5000, "Exceeds the limit"),
    "surrogate": (b'{"a": "\\ud83d"}', "lone surrogate"),
    "surrogate key": (b'{"\\udc00": 1}', "lone surrogate"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_json_is_one_line(tmp_path, case):
    raw, words = REFUSED[case]
    path = tmp_path / "x.json"
    path.write_bytes(raw)
    with pytest.raises(Damaged, match=words) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_folder_a_missing_file_and_a_large_one(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(Damaged, match="x.json: a folder"):
        read_json(tmp_path / "x.json")
    with pytest.raises(Damaged, match="none.json: cannot be read"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b" " * 3_000_000))
    with pytest.raises(Damaged, match="larger than 1 MB"):
        read_json(tmp_path / "bomb.gz", most=2**20)


def test_json_is_read_as_it_is(tmp_path):
    value = {"a": [1, 2.5, None, True, "π 😀"], "b": {"c": -1e-3}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), "\ufeff" + json.dumps(value)):
        assert parse_json(text.encode(), "here") == value
    assert parse_json("[" * 100 + "]" * 100, "here") and parse_json("[NaN]", "here", nan=True)[0] != 0


def test_lines(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": NaN}\n'))
    assert [row["a"] == 1 for row in read_lines(path, nan=True)] == [True, False]
    for raw in (b"[1]\n", b'{"a": 1}, {"a": 2}\n', b'{"a": 1\n}'):
        path.write_bytes(gzip.compress(raw))
        with pytest.raises(Damaged):
            read_lines(path)
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(Damaged, match="cannot be read"):
        read_lines(path)
