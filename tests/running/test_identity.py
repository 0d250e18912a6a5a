"""What enters a run's id: everything that can change its result, and nothing else."""

import subprocess
from dataclasses import fields, replace
from pathlib import Path

import pytest

from lorax.config import RunConfig, Train
from lorax.running.identity import source
from lorax.running.packing import pack_key
from lorax.running.prepared import ready

TOY = {"name": "toy", "kind": "generation"}
VALUES = {
    "init": {"name": "pissa"}, "task": TOY | {"letters": 3}, "model": {"name": "toy", "weights_seed": 1}, "rank": 3,
    "alpha": 3.0, "scaling": "rslora", "zeta": 3.0, "zeta_rule": "absolute", "gamma": 3.0, "lr": 3e-3, "steps": 3,
    "batch_size": 3, "weight_decay": 0.3, "dropout": 0.3, "seed": 3, "data_seed": 3, "targets": ["q_proj"],
    "recenter": "fold", "calibration": "heldout", "dtype": "bfloat16", "evaluate": "validation", "diagnostics": True,
    "device": "cpu", "base": False, "diagnostics_every": 3, "forgetting_tokens": 3, "cache": "off", "track": "online",
    "name": "other", "results_dir": "other", "label": "other", "tag": "other", "save": "other",
}  # fmt: skip
TRAIN = {
    "schedule": "linear", "warmup": 0.3, "clip": 0.3, "accumulation": 4, "head_lr": 0.3, "checkpoint_every": 3,
    "eval_batch_size": 3, "calibration_batches": 3,
}  # fmt: skip
ELSEWHERE = {"device", "base", "cache", "track", "name", "results_dir", "label", "tag", "save",
             "train.checkpoint_every", "train.eval_batch_size", "diagnostics_every", "forgetting_tokens"}  # fmt: skip
GRADIENT = {"calibration", "train.calibration_batches", "zeta", "zeta_rule", "gamma"}
TRAINING = {"lr", "steps", "batch_size", "weight_decay", "seed", "train.schedule", "train.warmup", "train.clip",
            "train.accumulation"}  # fmt: skip
ADAPTER = {"rank", "alpha", "scaling", "dropout", "recenter"}
IGNORES = {
    "lora_ga": {"train.head_lr"},
    "lora": GRADIENT | {"train.head_lr"},
    "svft": GRADIENT | {"rank", "alpha", "scaling", "train.head_lr"},
    "full": GRADIENT | ADAPTER | {"train.head_lr"},
    "none": GRADIENT | ADAPTER | TRAINING | {"targets", "train.head_lr"},
}


def config(init, **more):
    empty = dict.fromkeys(item.name for item in fields(RunConfig))
    train = {item.name: item.default for item in fields(Train)}
    plain = {"rank": 4, "weight_decay": 0.0, "dropout": 0.0, "seed": 0, "data_seed": 0, "targets": "all-linear",
             "recenter": "carry", "calibration": "train", "dtype": "float32", "device": "cpu", "evaluate": "test",
             "base": True, "diagnostics": False, "diagnostics_every": 1, "forgetting_tokens": 50, "cache": "on",
             "track": "none", "name": "small", "results_dir": "results", "batch_size": 12, "steps": 8}  # fmt: skip
    whole = empty | plain | {"init": {"name": init}, "task": TOY, "model": {"name": "toy"}, "train": train}
    return RunConfig(**whole | more)


@pytest.mark.filterwarnings("ignore:lora_ga scaling")
@pytest.mark.parametrize("init", IGNORES)
def test_every_field_that_moves_a_result_moves_the_id(init, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = config(init)
    values = VALUES | ({"scaling": "standard"} if init == "lora_ga" else {})  # the other one than its default
    same = {
        *(key for key, value in values.items() if ready(replace(start, **{key: value})).run_id == ready(start).run_id),
        *(f"train.{key}" for key, value in TRAIN.items()
          if ready(replace(start, train=start.train | {key: value})).run_id == ready(start).run_id),
    }  # fmt: skip
    assert {*VALUES, "train"} == {item.name for item in fields(RunConfig)}
    assert TRAIN.keys() == {item.name for item in fields(Train)}
    assert same == ELSEWHERE | IGNORES[init]


def test_a_head_s_rate_counts_where_there_is_a_head():
    task = {"name": "toy", "kind": "classification"}
    one, two = (config("lora", task=task, train=config("lora").train | {"head_lr": rate}) for rate in (0.1, 0.2))
    assert ready(one).run_id != ready(two).run_id


@pytest.mark.parametrize("change", [{"rank": 4}, {"calibration": "heldout"}, {"train": {"calibration_batches": 3}}])
def test_what_diagnostics_look_at_moves_the_id_of_methods_that_ignore_it(change):
    def ids(init):
        start = config(init, rank=8, diagnostics=True)
        change_ = change | ({"train": start.train | change["train"]} if "train" in change else {})
        return ready(start).run_id, ready(replace(start, **change_)).run_id

    for init in ("svft", "full"):
        assert len(set(ids(init))) == 2
    assert len(set(ids("none"))) == 1, "the frozen base is not measured"


def test_lanes_that_are_diagnosed_together_have_one_gradient():
    one, two = config("lora"), config("lora_ga", seed=1, targets=["q_proj"])
    assert pack_key(one) == pack_key(two)
    one, two, three = (replace(item, diagnostics=True) for item in (one, two, config("pissa")))
    assert pack_key(one) == pack_key(three) != pack_key(two)


def test_a_record_names_the_commit_of_its_checkout():
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = head.stdout.strip() if (root / ".git").exists() else None
    assert source()["commit"] == expected and (source()["dirty"] is None) == (expected is None)
