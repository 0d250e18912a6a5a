"""Several processes with one command on one folder: every run once, tables alike, a killed one's part taken over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from lorax.records import RunRecord, Store, claims
from lorax.records.chain import chain_path, read_chain
from lorax.running.launchers import sharing
from lorax.running.launchers.sharing import CLAIMED, take_or_await
from lorax.running.packing import make_packs

NAME = "small"


class Config:
    """What is asked of a job's configuration."""

    name = NAME

    def __init__(self, folder):
        self.results_dir = folder


def write(store, run, status="finished", when="later"):
    record = RunRecord(run, NAME, status, {}, {}, error="no convergence" if status == "failed" else None)
    store.write(record.__class__(**(vars(record) | {"provenance": {"finished": when}})))


@pytest.fixture
def other(tmp_path):
    """Another process, played by a thread: `hold(*runs)` has them until it writes their records, or drops them."""
    store, stop = Store(tmp_path), threading.Event()
    with ThreadPoolExecutor(1) as pool:

        def hold(*runs, end=lambda: None):
            held = threading.Event()

            def work():
                with ExitStack() as stack:
                    for run in runs:
                        stack.enter_context(store.claim(NAME, run))
                    held.set()
                    stop.wait(10)
                    end()

            pool.submit(work)
            assert held.wait(10)
            return stop

        yield hold
        stop.set()


def launcher(store, launched, failed_before=None):
    """Launches jobs called by their run's id, one after the other, as a launcher of sweeps does."""

    def launch(jobs):
        results = []
        for (run,) in jobs:
            try:
                with store.claim(NAME, run, timeout=0) as record:
                    if record is None:
                        launched.append(run)
                        write(store, run)
                results.append({"run_id": run, "status": "finished", "message": None, "overrides": [run]})
            except claims.Claimed:
                results.append({"run_id": run, "status": CLAIMED, "failed_before": failed_before, "overrides": [run]})
        return results

    return launch


def shared(tmp_path, launched, runs, failed_before=None):
    launch = launcher(Store(tmp_path), launched, failed_before)
    return take_or_await([[run] for run in runs], launch, lambda job: Config(tmp_path))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sharing, "_PAUSES", (0.01, 0.02))


def test_others_come_first_and_a_record_of_another_is_the_result(tmp_path, other):
    store, launched = Store(tmp_path), []
    stop = other("a", "b", end=lambda: [write(store, run) for run in ("a", "b")])
    threading.Timer(0.1, stop.set).start()
    results = shared(tmp_path, launched, ["a", "b", "c", "d"])
    assert launched == ["c", "d"] and [result["status"] for result in results] == ["finished"] * 4
    assert [result["overrides"] for result in results] == [["a"], ["b"], ["c"], ["d"]]


def test_what_another_leaves_without_a_record_is_taken_over(tmp_path, other):
    launched = []
    threading.Timer(0.1, other("a", "c").set).start()
    results = shared(tmp_path, launched, ["a", "b", "c"])
    assert (
        launched[0] == "b"
        and sorted(launched) == ["a", "b", "c"]
        and {result["status"] for result in results} == {"finished"}
    )
    assert not [path for path in tmp_path.rglob("*.lock")]


@pytest.mark.parametrize(("before", "outcome"), [(None, "failed"), ("earlier", "failed"), ("later", "finished")])
def test_a_failure_of_the_other_is_the_result_and_an_earlier_one_is_not(tmp_path, other, before, outcome):
    store, launched = Store(tmp_path), []
    if before == "later":  # it is there already, and the other process dies
        write(store, "a", "failed")
        stop = other("a")
    else:
        stop = other("a", end=lambda: write(store, "a", "failed"))
    threading.Timer(0.1, stop.set).start()
    (result,) = shared(tmp_path, launched, ["a"], before)
    assert result["status"] == outcome and launched == (["a"] if outcome == "finished" else [])


def test_who_waits_says_so_once(tmp_path, other, monkeypatch, capsys):
    monkeypatch.setattr(claims, "SAY_AFTER", 0.02)
    threading.Timer(0.2, other("a", "b").set).start()
    shared(tmp_path, [], ["a", "b"])
    assert capsys.readouterr().err == f"lorax: waiting for {said()}, which has 2 of the runs\n"


def said():
    import socket

    return f"process {os.getpid()} on {socket.gethostname()}"


def test_jobs_are_spread_over_cards_unless_lanes_are_given(monkeypatch):
    from lorax.running import packing

    class Job:
        pass

    monkeypatch.setattr(packing, "pack_key", lambda config: "one")
    monkeypatch.setattr(packing, "runs_that_fit", lambda config, free: 6)
    sizes = [
        [len(pack) for pack in make_packs([Job()] * 10, lanes, None, cards)]
        for lanes, cards in ((None, 1), (None, 2), (None, 4), (4, 4))
    ]
    assert sizes == [[6, 4], [5, 5], [3, 3, 3, 1], [4, 4, 2]]


COMMON = [sys.executable, "-m", "lorax.run", "model=toy", "task=toy", "dtype=float32", "track=none", "name=small"]
COMMON += ["task.n_test=10", "task.n_validation=10", "task.n_train=64", "batch_size=4", "steps=60"]
GRID = ["-m", "init=lora,pissa", "rank=2", "seed=0,1,2,3"]
LAUNCHERS = {"single": [], "packed": ["hydra/launcher=packed", "hydra.launcher.lanes=2"]}


@pytest.fixture
def start(tmp_path):
    environment = os.environ | {"LORAX_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def begin(words, results):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*words, f"results_dir={tmp_path / results}"], cwd=tmp_path, env=environment, **pipes)

    return begin


def ends(processes):
    said = [process.communicate(timeout=1500) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), [err[-1500:] for _, err in said]
    return [out for out, _ in said]


def tables(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "tables").rglob("*.*")}


def left_over(folder):
    return [path for path in folder.rglob("*") if path.suffix in (".lock", ".part", ".pt") or path.name[0] == "."]


def scores(folder, name):
    return {record.run_id: (record.status, record.curve, record.scores) for record in Store(folder).read(name)}


def who_ran(folder, name):
    """Count runs by the process that recorded them: each pack names its own, and its runs finish at one time."""
    return Counter(record.provenance["finished"] for record in Store(folder).read(name))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_with_one_sweep_share_its_runs(start, tmp_path, launcher):
    words = [*COMMON, *GRID, *LAUNCHERS[launcher]]
    count = 3 if launcher == "packed" else 2
    ends([start(words, "alone")])
    printed = ends([start(words, "shared") for _ in range(count)])
    alone, together = tmp_path / "alone", tmp_path / "shared"
    assert scores(together, NAME) == scores(alone, NAME) and len(scores(alone, NAME)) == 9
    tables_of = [out.partition("\n| ")[2].partition("table: ")[0] for out in printed]
    assert len(set(tables_of)) == 1 and tables_of[0]
    assert [name for name in tables(together)] == [name for name in tables(alone)] and not left_over(together)


STUDY = [
    sys.executable, "-m", "lorax.run", "study=toy", "study.fixed.steps=4", "study.fixed.batch_size=4",
    "study.seeds=[0,1]", "~study.blocks", "study.arms=[{init: lora, lr: 1e-9},pissa,{init: none, trained: false}]",
    "task.n_train=64", "task.n_validation=10", "task.n_test=10", "dtype=float32", "track=none",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["packed"])  # the kill test's two processes run the other
def test_a_study_is_shared_and_a_killed_process_s_part_is_taken_over(start, tmp_path, launcher):
    words = [*STUDY, *LAUNCHERS[launcher]]
    ends([start(words, "alone")])
    processes = [start(words, "shared") for _ in range(3)]
    together = tmp_path / "shared"
    while len(list((together / "records").rglob("*.json"))) < 8:  # in the round of tuning
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()[1][-2000:]
        time.sleep(0.1)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].communicate()
    printed = ends(processes[1:])
    assert scores(together, "toy") == scores(tmp_path / "alone", "toy") and not left_over(together)
    entered = Counter(entry.facts["run"] for entry in read_chain(chain_path(together, "toy")) if entry.kind == "record")
    assert set(entered) == set(scores(together, "toy")) and set(entered.values()) == {1}  # each run was run once
    assert len({out[out.index("# toy") :] for out in printed}) == 1
