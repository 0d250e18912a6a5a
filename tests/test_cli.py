"""`lorax <command>`: the word chooses a module; help and completion answer without loading any."""

import subprocess
import sys

import pytest

from lorax import cli


@pytest.fixture
def typed(monkeypatch):
    def run(*words, line=None):
        monkeypatch.setattr(sys, "argv", ["lorax", *words])
        if line is not None:
            monkeypatch.setenv("COMP_LINE", line)
        cli.main()

    return run


def test_every_command_has_a_main_and_a_line_of_help(typed, capsys):
    import importlib

    typed("--help")
    text = capsys.readouterr().out
    for name, (module, what) in cli.COMMANDS.items():
        assert callable(importlib.import_module(module).main) and f"lorax {name}" in text and what in text


def test_a_command_gets_the_words_after_it_and_its_exit_status(typed, capsys):
    with pytest.raises(SystemExit) as end:
        typed("tables", "--help")
    assert end.value.code == 0 and "rebuild the tables" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        typed("tables", "verify")
    assert end.value.code == 2


@pytest.mark.parametrize("words", [["run", "init=none"], ["init=none"], ["-m", "init=none"]], ids=" ".join)
def test_a_run_may_leave_its_word_out(typed, monkeypatch, words):
    started = []
    monkeypatch.setattr("lorax.run.main", lambda: started.append(list(sys.argv[1:])))
    with pytest.raises(SystemExit):
        typed(*words)
    assert started == [[word for word in words if word != "run"]]


def test_another_word_is_one_line_with_the_nearest(typed, capsys):
    with pytest.raises(SystemExit) as end:
        typed("table", "mine")
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and "'tables'" in lines[0]


def test_completion_offers_commands_then_what_hydra_offers(typed, monkeypatch, capsys):
    typed("-sc", "query=bash", line="lorax t")
    assert capsys.readouterr().out.split() == ["tables"]
    asked = []
    monkeypatch.setattr("lorax.run.main", lambda: asked.append((list(sys.argv[1:]), cli.os.environ["COMP_LINE"])))
    with pytest.raises(SystemExit):
        typed("-sc", "query=bash", line="lorax run init=lora")
    assert asked == [(["-sc", "query=bash"], "lorax init=lora")]


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['lorax', '--help']; from lorax.cli import main; main();"
        "print(sorted({'torch', 'hydra', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
