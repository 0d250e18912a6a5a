"""The command line of tables: one line for each mistake, torch-free, everything rebuilt from records."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from lorax.records import RunRecord, Store, run_id
from lorax.tables import draw, main


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    for seed in (0, 1):
        identity = {"init": {"name": "lora", "rank": 8}, "seed": seed}
        record = RunRecord(run_id(identity), "sweep", "finished", identity, identity, task={"name": "toy"},
                           scores={"test": {"score": 0.5, "n": 10}}, costs={"trainable": 8})  # fmt: skip
        store.write(record, [{"id": "1", "split": "test", "score": 1, "completion": "#### 4", "answer": "4"}])
    return store


def test_names_then_a_table(store, capsys):
    assert main([f"results_dir={store.root}"]) == 0
    assert capsys.readouterr().out == "sweep\n"
    assert main(["sweep", f"results_dir={store.root}"]) == 0
    out = capsys.readouterr().out
    assert "| lora" in out and f"wrote {store.root}/tables/sweep.md" in out
    assert draw(store, "sweep") == out


def test_rescore_and_help(store, capsys):
    assert main(["rescore=sweep", f"results_dir={store.root}"]) == 0
    assert "lm_eval_strict" in capsys.readouterr().out
    assert main(["--help"]) == 0 and "import=<folder>" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweeep"], "no records called 'sweeep' in .*; did you mean 'sweep'"),
        (["rescor=sweep"], "unknown option 'rescor'; did you mean 'rescore'"),
        (["a", "b"], "one table at a time"),
        (["import="], "import= needs a value"),
        (["import=nowhere"], "import: no folder nowhere"),
        (["../../x"], "name='../../x': '..' is no name of a folder"),
        (["rescore=../x"], "name='../x': '..' is no name of a folder"),
        (["/etc"], "name='/etc': letters, digits"),
        (["."], "name='.': '.' is no name of a folder"),
        (["x" * 5000], "longer than"),
        (["import=.", "items=x"], "items=x: a whole number from 1 is needed"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(store, capsys, arguments, message):
    assert main([*arguments, f"results_dir={store.root}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


def test_a_folder_that_cannot_be_written_is_one_line(store, capsys):
    (store.root / "tables").write_text("in the way")
    assert main(["sweep", f"results_dir={store.root}"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write")


def test_tables_need_no_torch(store):
    code = "import sys; from lorax.tables import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "sweep", f"results_dir={store.root}"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0


def test_an_error_that_nobody_has_worded_is_one_line_too(store, capsys, monkeypatch):
    from lorax import tables

    def broken(store, name):
        raise ZeroDivisionError("of\nsomething")

    monkeypatch.setattr(tables, "draw", broken)
    assert main(["sweep", f"results_dir={store.root}"]) == 2
    assert capsys.readouterr().err == "error: ZeroDivisionError: of something\n"


def test_texts_of_users_run_nowhere(store, capsys):
    """A label is no formula in a spreadsheet, no column and no script in Markdown; a number stays one."""
    label = '=HYPERLINK("http://x")|<script>alert(1)</script>'
    for record in store.read("sweep"):
        record.label, record.scores["test"]["score"] = label, 0.5
        record.init_report["eta"] = -0.5
        store.write(record, store.items(record))
    assert main(["sweep", f"results_dir={store.root}"]) == 0
    markdown, table = ((store.root / f"tables/sweep.{kind}").read_text() for kind in ("md", "csv"))
    assert "<script" not in markdown and "&lt;script" in markdown and "\\|" in markdown
    line = table.splitlines()[1]
    assert line.startswith("\"'=HYPERLINK") and "-0.5" in line and "'-0.5" not in line
