"""Published tables: as many rows, and the same cells, as another reader finds."""

import csv
import gzip
import json
from pathlib import Path

import pandas
import pytest

from lorax.tasks import load
from lorax.tasks.readers import Format, read

DATA = Path(__file__).parents[4] / "shared" / "data"
COLA = ("source", "label", "mark", "sentence")


def found(pattern):
    """Files of the published data, where they are at hand."""
    return [path for path in sorted(DATA.glob(pattern)) if path.name != "SOURCE.txt"]


def made(tmp_path):
    """A table like GLUE's: quotes that open and do not close, tabs, no quoting."""
    path = tmp_path / "made.tsv"
    lines = ["index\tsentence1\tsentence2\tlabel"]
    lines += [f'{i}\t" opens {i}\t{"closes" + chr(34) if i % 3 else "plain"}\t{i % 2}' for i in range(200)]
    path.write_text("\ufeff" + "\n".join(lines) + "\n")
    return path


def check_tabs(path):
    """Compare a tab-separated file with its physical lines, cut by hand."""
    columns = COLA if "cola" in str(path).lower() else None
    lines = [line.split(b"\t") for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n") if line]
    cells = [[cell.decode() for cell in line] for line in lines[0 if columns else 1 :]]
    rows = read(path, Format(columns=columns))
    assert [list(fields.values()) for _, fields in rows] == cells, path
    assert not rows.remarks, path
    return len(rows)


def test_small_published_tables_have_every_row(tmp_path):
    assert check_tabs(made(tmp_path)) == 200
    for path in [*found("glue/[MRW]*/dev.tsv"), *found("cola/*_dev.tsv")]:
        assert check_tabs(path) >= 71
    for path in found("humaneval/*.jsonl.gz"):
        assert len(read(path)) == len(gzip.open(path).read().splitlines()) == 164
    for path in found("commonsense/*/test.json"):
        assert [fields for _, fields in read(path)] == json.loads(path.read_text())


@pytest.mark.slow
def test_published_tables_have_every_row(tmp_path):
    assert check_tabs(made(tmp_path)) == 200
    for path in [*found("glue/*/*.tsv"), *found("glue/*/*.txt"), *found("cola/*.tsv")]:
        check_tabs(path)
    for path in found("commonsense/*/train.json"):
        assert len(read(path)) == path.read_text().count('"instruction":')
    for path in found("gsm8k/*.jsonl"):
        assert len(read(path)) == path.read_bytes().count(b"\n")
    for path in found("banking77/*.csv"):
        frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
        assert [fields for _, fields in read(path)] == frame.to_dict("records")
        with path.open(newline="") as file:
            assert len(read(path)) == len(list(csv.reader(file))) - 1


@pytest.mark.slow
@pytest.mark.parametrize("name, total, digest", [
    ("gsm8k", 7473 + 1319, "8207efb4940f21db5bfa0364dd3e7cbd"),
    ("banking77", 10003 + 3080, "cf003dbc7158f260400602778dda0583"),
    ("clinc150", 15000 + 3000 + 4500, "39895759e371c7d9c4152aef4ca5188f"),
    ("snips", 13784 + 700, "34882f69d59414e299e323eb870f6738"),
])  # fmt: skip
def test_published_tasks_keep_their_examples_and_say_how_many_rows_they_read(name, total, digest):
    folders = [DATA / name] if (DATA / name).is_dir() else []
    for folder in folders:
        task = load({"name": name, "path": str(folder)}, 0)
        kept = total - task.notes["duplicates"]
        assert task.notes["data"].startswith(f"read {total:,} rows, kept {kept:,}, dropped {task.notes['duplicates']}")
        assert task.digest == digest
