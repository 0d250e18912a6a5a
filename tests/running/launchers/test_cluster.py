"""A queue and other sweepers, with stand-ins: what is submitted, what is cancelled, which number is chosen by."""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lorax.errors import UserError
from lorax.records import Store
from lorax.run import objective
from lorax.running.launchers.cluster import cancelled_on_stop, is_cluster, name_jobs

SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"


def configuration(folder="./.submitit/%j", target=SLURM):
    launcher = {"_target_": target, "submitit_folder": folder, "name": "${hydra.job.name}"}
    return OmegaConf.create({"name": "adhoc", "hydra": {"job": {"name": "${name}"}, "launcher": launcher}})


def test_jobs_are_called_after_the_study_and_their_files_lie_with_its_others():
    config = configuration()
    name_jobs(config, "mine")
    assert config.hydra.launcher.name == "mine" and config.hydra.launcher.submitit_folder == "outputs/mine/.submitit/%j"
    config = configuration("/scratch/.submitit/%j")  # the user's own place
    name_jobs(config, "mine")
    assert config.hydra.launcher.submitit_folder == "/scratch/.submitit/%j"


def test_other_launchers_are_no_cluster():
    assert is_cluster(configuration()) and not is_cluster(
        configuration(target="hydra_plugins.lorax.launcher.PackedLauncher")
    )


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_is_stopped_leaves_the_queue(tmp_path, monkeypatch, stop):
    command = tmp_path / "bin" / "scancel"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    config = configuration(f"{tmp_path}/.submitit/%j")
    (tmp_path / ".submitit" / "11_0").mkdir(parents=True)  # an earlier sweep's, over or not ours to end
    with pytest.raises(stop), cancelled_on_stop(config):
        for task in ("12_0", "12_1", "13"):
            (tmp_path / ".submitit" / task).mkdir()
        raise stop
    assert (tmp_path / "cancelled").read_text() == "12 13\n"
    with cancelled_on_stop(config):
        (tmp_path / ".submitit" / "14_0").mkdir()
    assert (tmp_path / "cancelled").read_text() == "12 13\n"


@pytest.mark.slow
def test_a_finished_grid_is_not_submitted_again(lorax, capsys, monkeypatch):
    """The launcher is Hydra's basic one under a cluster's name: only what it is handed matters."""
    from lorax.running import sweep

    handed, read = [], sweep._read
    monkeypatch.setattr(sweep, "_read", lambda jobs, returns: [handed.append(len(jobs)), read(jobs, returns)][1])
    monkeypatch.setattr(sweep, "is_cluster", lambda config: True)
    monkeypatch.setattr(sweep, "cancelled_on_stop", lambda config: nullcontext())
    grid = ["-m", "base=false", "rank=2", "steps=1", "task.n_test=2"]
    assert lorax(*grid, "seed=0") == 0 and handed == [1]
    assert lorax(*grid, "seed=0,1") == 0 and handed == [1, 1]
    assert "1 of 2 jobs finished before: not submitted" in capsys.readouterr().out
    assert lorax(*grid, "seed=0,1") == 0 and handed == [1, 1] and len(Store("results").read("small")) == 2


def test_another_sweeper_gets_the_validation_score():
    scores = {"test": {"score": 0.9}, "validation": {"score": 0.25}}
    assert objective({"status": "finished", "scores": scores}) == 0.25
    assert math.isnan(objective({"status": "diverged", "scores": scores}))
    assert math.isnan(objective({"status": "finished", "scores": {}}))
    with pytest.raises(UserError, match="no convergence"):
        objective({"status": "failed", "message": "no convergence"})


def test_a_job_of_another_sweeper_returns_a_number(lorax, capsys, monkeypatch):
    """Hydra's basic sweeper stands for Optuna's: it takes what the job returns, and knows nothing of lorax."""
    from hydra.core.plugins import Plugins

    Plugins.instance()  # loads the modules of the plugins anew
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    returned, sweep = [], BasicSweeper.sweep
    monkeypatch.setattr(BasicSweeper, "sweep", lambda self, arguments: returned.append(sweep(self, arguments)))
    grid = ["hydra/sweeper=basic", "-m", "base=false", "rank=2", "steps=1", "seed=0,1"]
    assert lorax(*grid, "evaluate=validation", "task.n_validation=10") == 0
    values = [job.return_value for job in returned[0][0]]
    scores = sorted(record.score("validation") for record in Store("results").read("small"))
    assert sorted(values) == scores and all(isinstance(value, float) for value in values)
    assert lorax(*grid, results="none") == 2 and "evaluate=validation" in capsys.readouterr().err
    assert not Path("none").exists()
