"""A pack that does not fit is halved until it does; workers that are killed cost their pack's time, nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from lorax.records import Store
from lorax.running.launchers.memory import is_out_of_memory
from lorax.running.launchers.workers import Work, train_packs

GRID = ["-m", "base=false", "rank=2", "hydra/launcher=packed", "hydra.launcher.lanes=6", "seed=0,1,2,3,4,5"]


@pytest.mark.parametrize(("most", "kind"), [(3, MemoryError), (1, torch.OutOfMemoryError)])
def test_a_pack_that_does_not_fit_is_halved(lorax, capsys, monkeypatch, most, kind):
    from lorax.running import execute

    tried, whole = [], execute.execute

    def bounded(runs, provenance, show):
        tried.append(len(runs))
        if len(runs) > most:
            raise kind("CUDA out of memory. Tried to allocate 2.00 GiB")
        for run in runs:  # as `execute` leaves it, at no cost
            run.begin(provenance)
            run.record.scores["test"] = {"score": 0.5, "n": 20}
            run.store.write(run.record, [])

    monkeypatch.setattr(execute, "execute", bounded)
    assert whole is not bounded and lorax(*GRID) == 0
    assert tried == ([6, 3, 3] if most == 3 else [6, 3, 2, 1, 1, 1, 3, 2, 1, 1, 1])
    assert len(Store("results").read("small")) == 6 and "6 runs go on in packs of 3 and 3" in capsys.readouterr().out


def test_finished_lanes_are_kept_and_a_single_run_that_does_not_fit_fails_alone(lorax, monkeypatch, capsys):
    from lorax.running import execute

    def bounded(runs, provenance, show):
        for run in runs:
            if run.config.seed == 3:
                raise MemoryError
            run.begin(provenance)
            run.store.write(run.record, [])

    monkeypatch.setattr(execute, "execute", bounded)
    assert lorax(*GRID) == 1
    assert "1 of 6 jobs failed" in capsys.readouterr().err
    status = {record.config["seed"]: (record.status, record.error) for record in Store("results").read("small")}
    assert status.pop(3) == ("failed", "MemoryError") and set(status.values()) == {("finished", None)}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (OSError(12, "Cannot allocate memory"), False),
        (RuntimeError("no convergence"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_which_errors_say_so(error, said):
    assert is_out_of_memory(error) is said
    outer = RuntimeError("layer failed")
    outer.__cause__ = error
    assert is_out_of_memory(outer) is said


def test_half_of_a_pack_keeps_its_places():
    parts = Work(["a", "b", "c"], [[], [], []], [4, 5, 6]).smaller()
    assert [(part.configs, part.places) for part in parts] == [(["a", "b"], [4, 5]), (["c"], [6])]
    assert [part.attempt for part in parts[1].smaller()] == [2] and parts[1].smaller()[0].smaller() == []


def killed_or_named(configs, overrides):
    """Stands for training in a worker: packs of more than one are killed, and so is the run `doomed`."""
    if len(configs) > 1 or configs == ["doomed"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if configs == ["broken"]:
        raise RuntimeError("of two\nlines")
    return [{"status": "finished", "name": config} for config in configs]


@pytest.mark.slow
def test_a_killed_worker_is_one_line_and_its_pack_goes_on_in_halves(capfd):
    packs = [(["a", "b", "doomed"], [[], [], []]), (["broken"], [[]]), (["c"], [[]])]
    results = train_packs(packs, 2, killed_or_named)
    assert [result.get("name") for result in results] == ["a", "b", None, None, "c"]
    assert "signal 9" in results[2]["message"] and results[3]["message"] == "RuntimeError: of two lines"
    lines = capfd.readouterr().err.strip().splitlines()
    assert all(line.startswith("lorax: a worker was killed (signal 9") for line in lines) and len(lines) == 3, lines
    assert "goes on in packs of 2 and 1" in lines[0]


def is_worker(child):
    try:
        return "spawn_main" in str(child.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return False


@pytest.mark.slow
def test_a_real_kill_of_a_worker_and_then_of_its_parent(tmp_path):
    words = ["model=toy", "task=toy", "steps=300", "track=none", "dtype=float32", "task.n_test=20", "name=small"]
    words += ["-m", "base=false", "rank=2", "seed=0,1,2,3", "hydra/launcher=packed", "hydra.launcher.processes=2"]
    words = [sys.executable, "-m", "lorax.run", *words, "hydra.launcher.lanes=2", f"results_dir={tmp_path}/results"]
    environment = os.environ | {"LORAX_CACHE": str(tmp_path / "cache")}

    def started():
        process = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        locks, workers = [], []
        while process.poll() is None and not (locks and len(workers) == 2):
            time.sleep(0.05)
            locks = list(tmp_path.glob("results/state/small/*.lock"))
            workers = [child for child in psutil.Process(process.pid).children() if is_worker(child)]
        assert process.poll() is None
        return process, workers

    process, workers = started()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)  # within a second; a busy machine schedules late
    assert not alive
    process, workers = started()
    workers[0].kill()
    _, err = process.communicate(timeout=300)
    lines = err.strip().splitlines()
    assert process.returncode == 0 and [line for line in lines if "Traceback" in line] == []
    assert sum("a worker was killed (signal 9" in line for line in lines) == 1
    assert {record.status for record in Store(tmp_path / "results").read("small")} == {"finished"}
    assert len(Store(tmp_path / "results").read("small")) == 4
