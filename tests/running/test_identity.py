"""What enters a run's id: everything that can change its result, and nothing else."""

import subprocess
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorax.config import RunConfig, Train
from lorax.records import Store, run_id
from lorax.running.identity import identity, source
from lorax.running.packing import pack_key
from lorax.running.prepared import prepare
from lorax.training.objective import Reinforce

TOY = {"name": "toy", "kind": "generation"}
VALUES = {
    "init": {"name": "pissa"}, "task": TOY | {"letters": 3}, "model": {"name": "toy", "weights_seed": 1}, "rank": 3,
    "alpha": 3.0, "scaling": "rslora", "zeta": 3.0, "zeta_rule": "absolute", "gamma": 3.0, "lr": 3e-3, "steps": 3,
    "batch_size": 3, "weight_decay": 0.3, "dropout": 0.3, "seed": 3, "data_seed": 3, "targets": ["q_proj"],
    "exclude_modules": ["o_proj"], "layers_to_transform": 1, "layers_pattern": "layers", "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2.0}, "modules_to_save": ["lm_head"],
    "recenter": "fold", "calibration": "heldout", "dtype": "bfloat16", "evaluate": "validation", "diagnostics": True,
    "device": "cpu", "base": False, "diagnostics_every": 3, "forgetting_tokens": 3, "cache": "off", "track": "online",
    "objective": "reinforce", "reinforce": asdict(Reinforce(kl=0.5)),
    "name": "other", "results_dir": "other", "label": "other", "tag": "other", "save": "other", "plan": True,
    "save_rank": 1,
    "share": "A",
}  # fmt: skip
TRAIN = {
    "schedule": "linear", "warmup": 0.3, "clip": 0.3, "accumulation": 4, "head_lr": 0.3, "checkpoint_every": 3,
    "eval_batch_size": 3, "calibration_batches": 3, "compile": "graph", "shard": "fsdp", "max_tokens": 3,
    "checkpointing": True,
}  # fmt: skip
ELSEWHERE = {"share", "device", "base", "cache", "track", "name", "results_dir", "label", "tag", "save", "save_rank",
             "train.checkpoint_every", "train.eval_batch_size", "train.compile", "train.shard", "train.checkpointing",
             "plan", "diagnostics_every", "forgetting_tokens", "reinforce"}  # fmt: skip
GRADIENT = {"calibration", "train.calibration_batches", "zeta", "zeta_rule", "gamma"}
TRAINING = {"lr", "steps", "batch_size", "weight_decay", "seed", "train.schedule", "train.warmup", "train.clip",
            "train.accumulation", "train.max_tokens", "objective"}  # fmt: skip
ADAPTER = {"rank", "alpha", "scaling", "dropout", "recenter"}
RULES = {"exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save"}
IGNORES = {
    "lora_ga": {"train.head_lr"},
    "lora": GRADIENT | {"train.head_lr"},
    "svft": GRADIENT | {"rank", "alpha", "scaling", "train.head_lr", "rank_pattern", "alpha_pattern"},
    "full": GRADIENT | ADAPTER | RULES | {"train.head_lr"},
    "none": GRADIENT | ADAPTER | RULES | TRAINING | {"targets", "train.head_lr"},
}


def config(init, **more):
    start = {"rank": 4, "dtype": "float32", "device": "cpu", "forgetting_tokens": 50, "track": "none", "name": "small",
             "batch_size": 12, "steps": 8}  # fmt: skip
    return RunConfig(**start | {"init": {"name": init}, "task": TOY, "model": {"name": "toy"}} | more)


def run_id_of(config):
    return prepare(config).run_id


@pytest.mark.filterwarnings("ignore:lora_ga scaling")
@pytest.mark.parametrize("init", IGNORES)
def test_every_field_that_moves_a_result_moves_the_id(init, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = config(init)
    values = VALUES | ({"scaling": "standard"} if init == "lora_ga" else {})  # the other one than its default
    changed = {key: {key: value} for key, value in values.items()}
    changed["layers_pattern"] |= {"layers_to_transform": 1}
    changed |= {f"train.{key}": {"train": start.train | {key: value}} for key, value in TRAIN.items()}
    same = {key for key, change in changed.items() if run_id_of(replace(start, **change)) == run_id_of(start)}
    assert {*VALUES, "train"} == {item.name for item in fields(RunConfig)}
    assert TRAIN.keys() == {item.name for item in fields(Train)}
    assert same == ELSEWHERE | IGNORES[init]


def test_ids_of_the_committed_records_have_not_changed():
    """What a finished run consumed, worked out again from its configuration, has the id of its record."""
    store = Store(Path(__file__).parents[2] / "results")
    records = [record for folder in sorted(store.root.glob("records/*")) for record in store.read(folder.name)]
    keys = {item.name for item in fields(RunConfig)}
    for record in records:
        config = RunConfig(**{key: value for key, value in record.config.items() if key in keys})
        task = SimpleNamespace(**{key: record.task[key] for key in ("name", "kind", "digest", "version")})
        model, dtype = record.identity["model"]["digest"], record.identity["dtype"]
        assert run_id(identity(config, config.initializer(), task, model, dtype)) == record.run_id
    assert records


def test_new_masks_mark_runs_with_dropout_alone():
    plain, dropping = (prepare(config("lora", dropout=p)) for p in (0.0, 0.1))
    assert "masks" not in plain.identity and dropping.identity["masks"] == {"version": 2}
    assert "masks" not in prepare(config("full", dropout=0.1)).identity


def test_a_head_s_rate_counts_where_there_is_a_head():
    task = {"name": "toy", "kind": "classification"}
    one, two = (config("lora", task=task, train=config("lora").train | {"head_lr": rate}) for rate in (0.1, 0.2))
    assert run_id_of(one) != run_id_of(two)


@pytest.mark.parametrize("change", [{"rank": 4}, {"calibration": "heldout"}, {"train": {"calibration_batches": 3}}])
def test_what_diagnostics_look_at_moves_the_id_of_methods_that_ignore_it(change):
    def ids(init):
        start = config(init, rank=8, diagnostics=True)
        change_ = change | ({"train": start.train | change["train"]} if "train" in change else {})
        return run_id_of(start), run_id_of(replace(start, **change_))

    for init in ("svft", "full"):
        assert len(set(ids(init))) == 2
    assert len(set(ids("none"))) == 1, "the frozen base is not measured"


def test_a_pattern_counts_with_its_place_and_modules_trained_whole_share_no_base():
    one, two = (config("lora", rank_pattern=dict(pairs)) for pairs in ([("q", 1), (".*", 2)], [(".*", 2), ("q", 1)]))
    assert run_id_of(one) != run_id_of(two) and pack_key(one) == pack_key(two)
    assert run_id_of(config("lora", rank_pattern={}, exclude_modules=[])) == run_id_of(config("lora"))
    assert pack_key(config("lora", modules_to_save=["lm_head"])) != pack_key(config("lora"))


def test_runs_that_are_diagnosed_in_one_pack_have_one_gradient():
    one, two = config("lora"), config("lora_ga", seed=1, targets=["q_proj"])
    assert pack_key(one) == pack_key(two)
    one, two, three = (replace(item, diagnostics=True) for item in (one, two, config("pissa")))
    assert pack_key(one) == pack_key(three) != pack_key(two)


def test_a_record_names_the_commit_of_its_checkout():
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = head.stdout.strip() if (root / ".git").exists() else None
    assert source()["commit"] == expected and (source()["dirty"] is None) == (expected is None)
