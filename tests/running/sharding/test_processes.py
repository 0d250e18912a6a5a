"""`train.shard=fsdp`: what is refused before anything is loaded, and the whole command on two CPU processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lorax.errors import UserError
from lorax.records import Store
from lorax.running.sharding import processes
from lorax.running.sharding.processes import check_sharded


@pytest.fixture
def configuration():
    """A run's configuration with `train.shard=fsdp`; keywords change it."""
    from lorax.config import RunConfig, Train

    def make(method="lora", **more):
        train = vars(Train()) | {"shard": "fsdp"} | more.pop("train", {})
        fields = {"init": {"name": method}, "dtype": "float32", "train": train}
        return RunConfig(**(fields | more))

    return make


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "full"}, "init=full trains it"),
        ({"recenter": "fold"}, "leave out recenter=fold"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"diagnostics": True}, "diagnostics read the whole base"),
        ({"train": {"compile": "graph"}}, "leave out train.compile=graph"),
        ({"dtype": "bf16-autocast"}, "set dtype=bfloat16 or dtype=float32"),
    ],
)
def test_what_a_spread_base_does_not_do_is_refused(configuration, monkeypatch, given, says):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=says) as error:
        check_sharded(configuration(**given))
    assert "\n" not in str(error.value)


def test_it_needs_torchrun_and_its_own_processes(configuration, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="start it as torchrun"):
        check_sharded(configuration())
    check_sharded(configuration(train={"shard": "none"}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_sharded(configuration())
    check_sharded(configuration("none"))  # the frozen base alone


@pytest.mark.parametrize(("count", "size"), [(5, 2), (4, 2), (1, 2), (7, 3)])
def test_parts_of_a_pack_are_put_together_in_its_order(monkeypatch, count, size):
    from torch import distributed

    runs, parts = list(range(count)), []
    for rank in range(size):
        monkeypatch.setattr(processes, "group", lambda rank=rank: (rank, size))
        parts.append(processes.mine(runs))

    def gather(box, mine):
        box[:] = parts

    monkeypatch.setattr(distributed, "all_gather_object", gather)
    assert processes.merged(parts[0], count) == runs


@pytest.mark.slow
def test_the_command_on_two_processes_equals_the_command_on_one(tmp_path):
    words = ["model=toy", "task=toy", "steps=6", "track=none", "dtype=float32", "task.n_test=10", "batch_size=4"]
    words += ["name=small", "-m", "init=lora,pissa,lora_ga", "rank=2"]
    words += ["hydra/launcher=packed", "hydra.launcher.lanes=3"]
    environment = os.environ | {"LORAX_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for start, folder, more in (([sys.executable], "one", []), (torchrun, "two", ["train.shard=fsdp"])):
        command = [*start, "-m", "lorax.run", *words, f"results_dir={tmp_path / folder}", *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = ({run.run_id: run for run in Store(tmp_path / folder).read("small")} for folder in ("one", "two"))
    assert one.keys() == two.keys() and len(one) == 4
    for key, run in one.items():
        other = two[key]
        assert other.provenance["processes"] == 2 and other.status == run.status == "finished"
        assert [row["loss"] for row in other.curve] == pytest.approx([row["loss"] for row in run.curve], rel=1e-5)
        assert other.scores["test"]["loss"] == pytest.approx(run.scores["test"]["loss"], rel=1e-5)
        assert other.scores["test"]["score"] == run.scores["test"]["score"]
