"""A run and a pack, killed before every call that changes a file, then run again: as if nothing had happened.

Each process is a fork of this one, so that it starts at once, and is ended by SIGKILL before the call is made:
opening for writing, renaming, removing, making or removing a folder, and half-way through a write.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SMALL = [
    "model=toy", "model.hidden=8", "model.layers=1", "task=toy", "task.n_train=16", "task.n_validation=4",
    "task.n_test=6", "steps=4", "batch_size=4",
    "targets=[q_proj,v_proj]", "rank=2", "dtype=float32", "track=none",
    "base=false", "name=small", "train.checkpoint_every=2", "results_dir=results",
]  # fmt: skip
COMMANDS = {
    "run": [*SMALL, "init=pissa", "save=saved", "seed=1"],
    # One run of the pack diverges in its second step: its end has to survive too.
    "pack": ["-m", *SMALL, "hydra/launcher=packed", "train.clip=null", "lr=0.03,1e30", "seed=1"],
}
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


class Calls:
    """Counts the calls of this process that change files below a folder, and ends it in the chosen one."""

    def __init__(self, folder, last):
        self.folder, self.last, self.count = str(folder), last, 0
        self.sync = os.fsync
        os.fsync = self.fsync
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        changes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3)
        if changes and not isinstance(arguments[0], int) and self.inside(arguments[0]):
            self.next()

    def inside(self, path):
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)

    def fsync(self, handle):
        if self.count + 1 == self.last:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
        self.next()
        self.sync(handle)

    def next(self):
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def forked(folder, words, last=0):
    """Run the command line in a fork with `folder` as its place; return its exit status and how many calls it made."""
    folder.mkdir(exist_ok=True)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.close(read)
            os.chdir(folder)
            os.environ["LORAX_CACHE"] = str(folder / "cache")
            silent = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            sys.argv = ["lorax", *words]
            calls = Calls(folder, last)
            from lorax.run import main

            try:
                main()
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
            os.write(write, str(calls.count).encode())
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        count = int(pipe.read() or 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), count


def result(folder):
    """What must not depend on kills: records without times, items, adapters, tables."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith("cache") or path.is_dir():
            continue
        if path.match("records/small/*.json"):
            record = json.loads(path.read_text())
            parts = ("status", "error", "curve", "scores", "identity", "init_report", "items_digest")
            found[name] = {key: record[key] for key in parts}
        elif path.match("*.items.jsonl.gz"):
            found[name] = gzip.decompress(path.read_bytes())
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_any_call_the_same_command_ends_as_if_it_had_not_been(lorax, command, tmp_path):
    import torch

    torch.set_num_threads(1)
    words = COMMANDS[command]
    # Here first: what forks would have to import takes ten times longer than what they do.
    assert lorax(*words, results="results", small=False) == 0
    shutil.rmtree(tmp_path / "results")
    code, calls = forked(tmp_path / "whole", words)
    assert code == 0 and calls > 30, (tmp_path / "whole.log").read_text()[-2000:]
    whole = result(tmp_path / "whole")
    # Nothing but records, items, the table and the adapter: no state, no lock, no temporary file, no output folder.
    assert {Path(name).parts[0] for name in whole} <= {"results", "saved"}
    assert {Path(name).parts[1] for name in whole if name.startswith("results")} == {"records", "tables"}
    for last in range(1, calls + 1):
        place = tmp_path / f"killed{last}"
        assert forked(place, words, last)[0] == -signal.SIGKILL
        assert forked(place, words)[0] == 0, (last, (tmp_path / f"killed{last}.log").read_text()[-2000:])
        assert result(place) == whole, (last, calls)
        litter = [path for path in (place / "cache").rglob("*") if path.suffix == ".part"]
        assert not litter, (last, litter)
