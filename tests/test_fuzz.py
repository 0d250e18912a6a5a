"""Inputs at random: each ends with exit code 0, or one line and exit code 2, in seconds; nothing lies elsewhere."""

from __future__ import annotations

import os
import resource
import sys
import time

import pytest
from fuzz_inputs import SMALL, draw, write

from lorax.errors import LONGEST
from lorax.running.preflight import _load_task
from lorax.tables import main as tables

SECONDS, MEGABYTES = 60, 1500
"""Of one input at most, on a busy machine; and what a whole batch of inputs may add to this process."""


def try_input(seed, lorax, capsys, folder):
    """Return what is wrong with how an input ended; nothing where all is as promised."""
    given = draw(seed)
    folder.mkdir()
    os.chdir(folder)
    write(given.files)
    _load_task.cache_clear()  # a process reads a path once
    before = {path for path in folder.rglob("*")}
    start = time.monotonic()
    try:
        if given.kind == "record":
            code = tables(given.words)
        else:
            code = lorax(*(SMALL if given.small else []), *given.words, small=False)
    except BaseException as error:
        return f"{given}: {type(error).__name__}: {error}"[:600]
    printed = capsys.readouterr()
    lines = printed.err.strip("\n").split("\n") if printed.err else []
    elsewhere = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path not in before}
    what = [
        (code not in (0, 2), f"exit code {code}"),
        (code == 2 and len(lines) != 1, f"{len(lines)} lines"),
        (code == 2 and any(len(line) > LONGEST + 10 for line in lines), "a long line"),
        ("Traceback" in printed.err + printed.out, "a traceback"),
        (elsewhere - {"results", "outputs"}, f"wrote {elsewhere}"),
        (code == 2 and any((folder / "results").rglob("*.lock")), "left a lock"),
        (time.monotonic() - start > SECONDS, f"{time.monotonic() - start:.0f} s"),
    ]
    wrong = [text for is_wrong, text in what if is_wrong]
    return f"seed {seed}: {', '.join(wrong)}: {str(given)[:300]}: {printed.err[:300]}" if wrong else None


def try_all(seeds, lorax, capsys, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = [line for seed in seeds if (line := try_input(seed, lorax, capsys, tmp_path / str(seed)))]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert not wrong, "\n".join(wrong)
    assert grown < MEGABYTES, f"{grown:.0f} MB more"


@pytest.mark.parametrize(
    "seeds", [range(45), pytest.param(range(45, 100), marks=pytest.mark.slow)], ids=["five of each kind", "more"]
)
def test_a_hundred_inputs_are_refused_or_would_run(lorax, capsys, tmp_path, monkeypatch, seeds):
    """What is accepted is not trained here: composing, reading and checking is what is tried."""
    from lorax.running import study, sweep
    from lorax.studies import plan

    done = {"status": "finished", "run_id": "0", "message": None}
    monkeypatch.setattr(sys.modules["lorax.run"], "run_one", lambda *words, **options: done)
    monkeypatch.setattr(sweep, "launch", lambda sweeper, jobs, start: [])
    monkeypatch.setattr(sweep, "_show_tables", lambda configs: None)
    # A study is read and checked; each of its arms is composed in the slow tier alone.
    monkeypatch.setattr(plan, "bind", lambda spec, **facts: spec)
    monkeypatch.setattr(study._JobFacts, "with_items", lambda self, spec: spec)
    try_all(seeds, lorax, capsys, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(10))
def test_a_thousand_inputs_end_as_promised(lorax, capsys, tmp_path, batch):
    first = 1000 * int(os.environ.get("LORAX_FUZZ", "1")) + 100 * batch
    try_all(range(first, first + 100), lorax, capsys, tmp_path)
