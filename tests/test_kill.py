"""Studies that are really killed, run twice at once, or run out of space: whole processes, kill -9, a full disk."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lorax.records import Store
from lorax.records.chain import chain_path, read_chain

pytestmark = pytest.mark.slow
GRID = 2 * 6 * 2  # arms x rates x tuning seeds; what is tuned beyond it is the extension
ROUNDS = {"cost": ("cost", 1), "tune": ("tune", 1), "extend": ("tune", GRID + 1), "final": ("final", 1)}
STUDY = [
    sys.executable, "-m", "lorax.run", "study=toy", "study.fixed.steps=4", "study.fixed.batch_size=4",
    "study.seeds=[0,1,2]", "~study.blocks", "study.arms=[{init: lora, lr: 1e-9},pissa,{init: none, trained: false}]",
    "task.n_train=64", "task.n_validation=10", "task.n_test=10", "dtype=float32", "track=none",
]  # fmt: skip
LAUNCHERS = {"single": [], "packed": ["hydra/launcher=packed", "hydra.launcher.lanes=4"]}


@pytest.fixture
def start(tmp_path):
    """Start the study in a process of its own; its records go to `tmp_path/<results>`."""
    environment = os.environ | {"LORAX_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def begin(launcher, results, *extra, **more):
        words = [*STUDY, *LAUNCHERS[launcher], *extra, f"results_dir={tmp_path / results}"]
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more
        return subprocess.Popen(words, cwd=tmp_path, env=environment, **more)

    return begin


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    return out


def records(folder):
    store = Store(folder)
    return {record.run_id: record for record in store.read("toy")} if store.folder("toy").is_dir() else {}


def outcome(runs):
    return {key: (record.label, record.status, record.curve, record.scores) for key, record in runs.items()}


def reached(runs, name):
    tag, least = ROUNDS[name]
    return sum(record.provenance["tag"] == f"toy.{tag}" for record in runs.values()) >= least


def finished(runs):
    return {key: record.provenance["finished"] + str(record.costs) for key, record in runs.items()}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_study_killed_in_every_round_ends_as_if_it_had_not_been(start, tmp_path, launcher):
    finish(start(launcher, "whole"))
    whole, kept, killed = records(tmp_path / "whole"), {}, tmp_path / "killed"
    assert all(reached(whole, name) for name in ROUNDS)
    for name in ROUNDS:
        process = start(launcher, "killed", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if reached(records(killed), name):
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = finished(records(killed))
        assert kept.items() <= now.items(), "a finished run was run again"
        kept = now
    finish(start(launcher, "killed"))
    assert kept.items() <= finished(records(killed)).items()
    assert outcome(records(killed)) == outcome(whole)
    assert (killed / "tables/toy.csv").is_file() and not list(killed.rglob("*.pt"))


def _is_worker(process):
    try:
        return "spawn_main" in str(process.cmdline())
    except psutil.NoSuchProcess:  # a helper that has just ended, a zombie too
        return False


def test_a_terminated_sweep_ends_its_workers(start, tmp_path):
    process = start("packed", "ended", "hydra.launcher.processes=2")
    while not (workers := [one for one in psutil.Process(process.pid).children(True) if _is_worker(one)]):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "the same command goes on" in err and "Traceback" not in err
    assert not psutil.wait_procs(workers, timeout=30)[1]
    finish(start("packed", "ended"))
    assert len(records(tmp_path / "ended")) > GRID


def test_two_processes_on_one_study_share_it(start, tmp_path):
    finish(start("single", "alone"))
    printed = [finish(process) for process in [start("single", "shared"), start("single", "shared")]]
    assert outcome(records(tmp_path / "shared")) == outcome(records(tmp_path / "alone"))
    assert all("# toy" in out for out in printed)
    entries = [entry for entry in read_chain(chain_path(tmp_path / "shared", "toy")) if entry.kind == "record"]
    runs = [entry.facts["run"] for entry in entries]
    assert sorted(runs) == sorted(records(tmp_path / "shared"))  # each run was run once


def test_a_disk_that_fills_is_one_line_and_the_same_command_goes_on(start, tmp_path):
    # The kernel itself refuses to let any file grow beyond 8 kB: the first large one cannot be written.
    limit = (8192, resource.RLIM_INFINITY)
    process = start("single", "full", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    _, err = process.communicate()
    lines = [line for line in err.strip().splitlines() if line.startswith("lorax: ")]
    assert process.returncode == 2 and len(lines) == 1 and "File too large" in lines[0], err
    assert "Traceback" not in err and not [path for path in Path(tmp_path / "full").rglob(".*") if path.is_file()]
    finish(start("single", "full"))
    finish(start("single", "alone"))
    assert outcome(records(tmp_path / "full")) == outcome(records(tmp_path / "alone"))
