"""`objective=reinforce` from the command line to record, table and label, and what is refused there."""

import json
from dataclasses import asdict, replace

import pytest

from lorax.config import RunConfig, resolve
from lorax.errors import UserError
from lorax.records import RunRecord, Store
from lorax.records.grouping import rows_of
from lorax.records.staleness import fresh
from lorax.reports.frames.asymmetries import lint
from lorax.reports.sweep import read_sweep
from lorax.running.identity import consumed_fields
from lorax.running.messages import _unknown_key, explain
from lorax.running.packing import pack_key
from lorax.running.preflight import preflight
from lorax.training.objective import Reinforce

TOY = {"model": {"name": "toy"}, "task": {"name": "toy"}, "init": {"name": "lora", "lr_prior": 1.0}}


def config(**more):
    rewards = asdict(Reinforce()) | more.pop("reinforce", {})
    train = RunConfig().train | more.pop("train", {})
    return RunConfig(**TOY | {"objective": "reinforce", "reinforce": rewards, "train": train} | more)


def test_a_run_on_rewards_says_so_in_record_table_and_label(lorax, capsys, tmp_path):
    words = ["init=lora", "rank=2", "steps=2", "batch_size=2", "model.hidden=16", "model.layers=1", "base=false"]
    assert lorax(*words, "objective=reinforce", "reinforce.samples=3", "reinforce.kl=0.1") == 0
    [record] = Store(tmp_path / "results").read("small")
    assert record.identity["objective"] == "reinforce" and record.identity["reinforce"]["samples"] == 3
    assert record.costs["completions"] == 2 * 2 * 3
    assert record.costs["decoded_tokens"] == sum(row["tokens"] for row in record.curve) > 0
    assert all({"score", "tokens", "loss", "grad_norm"} <= row.keys() for row in record.curve)
    table = (tmp_path / "results" / "tables" / "small.md").read_text()
    assert "lora objective=reinforce" in table and "Trained on rewards" in table and "12 completions" in table
    out = capsys.readouterr()
    assert "no reference answer read" in " ".join(out.out.split())


def test_the_likelihood_stays_out_of_ids_and_reward_settings_come_in():
    plain, rewarded = config(objective="likelihood"), config()
    method = plain.initializer()
    without = consumed_fields(plain, method)
    assert not {"objective", "reinforce"} & without.keys()
    assert without == consumed_fields(replace(plain, reinforce=asdict(Reinforce(samples=9))), method)
    assert consumed_fields(rewarded, method) == without | {
        "objective": "reinforce",
        "reinforce": {**asdict(Reinforce()), "version": 1},
    }
    assert pack_key(plain) != pack_key(rewarded) != pack_key(config(reinforce={"kl": 0.5}))
    none = replace(rewarded, init={"name": "none"})
    assert not {"objective", "reinforce"} & consumed_fields(none, none.initializer()).keys()


@pytest.mark.parametrize(
    "more, parts",
    [
        ({"dropout": 0.1}, ["dropout=0.1", "dropout=0"]),
        ({"train": {"compile": "graph"}}, ["train.compile=graph", "eager"]),
        ({"diagnostics": True}, ["diagnostics=true", "likelihood"]),
        ({"init": {"name": "lora_ga"}}, ["init=lora_ga", "gradient of the likelihood"]),
        ({"objective": "reinforced"}, ["objective=reinforced", "reinforce"]),
        ({"reinforce": {"samples": 0}}, ["reinforce.samples=0", "between 1"]),
        ({"reinforce": {"samples": 2.5}}, ["reinforce.samples=2.5", "whole"]),
        ({"reinforce": {"temperature": -1.0}}, ["reinforce.temperature=-1", "between 0"]),
        ({"reinforce": {"temperature": float("nan")}}, ["reinforce.temperature=nan", "finite"]),
        ({"reinforce": {"temperature": 0.0}}, ["reinforce.temperature=0", "reinforce.samples=1"]),
        ({"reinforce": {"baseline": "mean", "samples": 1}}, ["reinforce.baseline=mean", "samples=2"]),
        ({"reinforce": {"baseline": "median"}}, ["reinforce.baseline=median", "mean"]),
        ({"reinforce": {"reward": "signs"}}, ["reinforce.reward=signs", "sign"]),
        ({"reinforce": {"kl": -0.1}}, ["reinforce.kl=-0.1", "between 0"]),
        ({"reinforce": {"klc": 1}}, ["reinforce.klc", "kl"]),
    ],
)
def test_what_cannot_be_is_one_line(more, parts):
    data = config(**more).to_dict()
    with pytest.raises(UserError) as caught:
        resolve(data | {"study": None})
    assert all(part in str(caught.value) for part in parts) and len(str(caught.value)) <= 300


def test_a_misspelt_key_names_the_near_one():
    assert "did you mean 'reinforce.samples'" in explain(UserError(_unknown_key("reinforce.sampels")))


def test_tasks_without_generated_answers_are_refused():
    with pytest.raises(UserError, match="task=toy is classification"):
        preflight([config(task={"name": "toy", "kind": "classification"}, cache="off", track="none")])


def record(run, **identity):
    name = {"init": {"name": "lora", "rank": 8}, "lr": 0.1, "steps": 5, "seed": 0, **identity}
    return RunRecord(
        run, "s", "finished", {"init": {"name": "lora"}, "seed": 0, "steps": 5}, name,
        costs={"trainable": 5, "completions": 40, "decoded_tokens": 80},
        provenance={"finished": f"2026-01-0{'abc'.index(run) + 1}"},
        task={"name": "toy"}, model={"name": "m"}, scores={"test": {"score": 0.5, "n": 4}},
    )  # fmt: skip


def test_rows_and_footnotes_tell_rewards_from_likelihood():
    rewards = {"objective": "reinforce", "reinforce": {**asdict(Reinforce()), "version": 1}}
    other = json.loads(json.dumps(rewards))
    other["reinforce"]["kl"] = 0.5
    runs = [record("a"), record("b", **rewards), record("c", **other)]
    assert {run: row.label for run, row in rows_of(runs[:2]).items()} == {"a": "lora", "b": "lora objective=reinforce"}
    labels = [row.label for row in rows_of(runs).values()]
    assert labels == ["lora", "lora objective=reinforce reinforce.kl=0", "lora objective=reinforce reinforce.kl=0.5"]
    assert not fresh(runs)[1]  # a run on rewards outdates none on the likelihood
    assert rows_of(runs[1:2])["b"].label == "lora objective=reinforce"
    assert "objective: likelihood (x), reinforce (y)" in [each.line() for each in lint({"x": runs[:1], "y": runs[1:2]})]
    assert any(line.startswith("Trained on rewards") for line in read_sweep(runs[1:2]).notes)
    assert not any("rewards" in line for line in read_sweep(runs[:1]).notes)


def test_what_hydra_wraps_of_ours_is_told_in_our_words():
    from hydra.errors import InstantiationException

    wrapped = InstantiationException("Error in call to target 'a.b': UserError('x=3: y')\nfull_key: hydra.launcher")
    wrapped.__cause__ = UserError("x=3: y")
    assert explain(wrapped) == "x=3: y"
