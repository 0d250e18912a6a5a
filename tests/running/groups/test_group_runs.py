"""Runs over several tasks, by the command line on the toy model: what equals what, records, files, resuming, tables."""

import json
import math
from pathlib import Path

import pytest
import torch

from lorax.models import registry as models
from lorax.records import Store

WORDS = ["model=toy", "steps=4", "track=none", "name=small", "rank=2", "base=false"]
TWO = ["task=group", "task.parts={a: toy, b: toy}", "task.parts.b.letters=3", "task.parts.a.n_test=8",
       "task.parts.b.n_test=12"]  # fmt: skip
CLASSES = ["task=group", "task.parts={a: toy_classification, b: toy_classification}", "task.parts.b.letters=3",
           "task.parts.a.n_test=8", "task.parts.b.n_test=8"]  # fmt: skip
SINGLE = {"a": ["task=toy", "task.n_test=8"], "b": ["task=toy", "task.letters=3", "task.n_test=12"]}


def records(name="small"):
    """The records of that name, none where nothing ran."""
    store = Store("results")
    return store.read(name) if store.folder(name).is_dir() else []


@pytest.fixture
def run(lorax):
    def go(*words, name="small"):
        before = {record.run_id for record in records(name)}
        assert lorax(*WORDS, *words, f"name={name}", small=False) == 0
        [record] = [record for record in records(name) if record.run_id not in before]
        return record

    return go


def test_a_group_of_one_task_is_a_run_on_that_task(run):
    one = run("dtype=float64", "task=toy", "task.n_test=8")
    group = run("dtype=float64", "task=group", "task.parts=[toy]", "task.parts.toy.n_test=8")
    assert [row["loss"] for row in group.curve] == [row["loss"] for row in one.curve]
    assert [row["grad_norm"] for row in group.curve] == [row["grad_norm"] for row in one.curve]
    assert group.scores["test"]["loss"] == one.scores["test"]["loss"]
    assert group.costs["trainable"] == one.costs["trainable"] and group.run_id != one.run_id


@pytest.mark.slow
@pytest.mark.parametrize("words, single", [(TWO, SINGLE), (CLASSES, None)], ids=["text", "classes"])
def test_tasks_that_share_nothing_are_separate_runs_but_for_the_clip_and_adam_s_eps(run, words, single):
    """Each task's gradient is 1/T of its own, which AdamW's update forgets up to eps; the norm is that of all."""
    single = single or {
        "a": ["task=toy_classification", "task.n_test=8"],
        "b": ["task=toy_classification", "task.letters=3", "task.n_test=8"],
    }
    group = run("dtype=float64", "train.clip=null", *words)
    alone = {name: run("dtype=float64", "train.clip=null", *own) for name, own in single.items()}
    norms = [one.curve[0]["grad_norm"] / 2 for one in alone.values()]
    assert group.curve[0]["grad_norm"] == pytest.approx(math.hypot(*norms), rel=1e-10)
    for name, one in alone.items():
        assert [row[f"loss/{name}"] for row in group.curve] == pytest.approx(
            [row["loss"] for row in one.curve], rel=1e-5
        )
        assert group.score("test", "loss", part=name) == pytest.approx(one.score("test", "loss"), rel=1e-5)
    assert group.costs["trainable"] == sum(one.costs["trainable"] for one in alone.values())
    assert group.costs["head"] == sum(one.costs["head"] for one in alone.values())


@pytest.mark.slow
@pytest.mark.parametrize("words", [["share=A"], ["share=common"], ["init=mtl_lora"]], ids=lambda words: words[0])
@pytest.mark.parametrize("tasks", [TWO, CLASSES], ids=["text", "classes"])
def test_a_saved_task_alone_scores_as_in_its_group(run, tasks, words, monkeypatch):
    import lorax as package
    from lorax.evaluation.evaluate import evaluate, summarise
    from lorax.running.preflight import class_names

    seen = []
    from lorax.running.groups import execute

    monkeypatch.setattr(execute, "parts_of", lambda run, real=execute.parts_of: seen.append(real(run)) or seen[-1])
    group = run("dtype=float32", "save=saved", *tasks, *words)
    assert group.provenance["saved"] == f"saved/{group.run_id}"
    for part in seen[0]:
        loaded = models.load({"name": "toy"}, labels=class_names(part.task), seed=5)
        package.load(loaded.model, f"saved/{group.run_id}/{part.task.name}")
        [items] = evaluate(loaded, part.task, "test")
        expected = group.scores["test"]["tasks"][part.task.name]
        assert summarise(items)["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["share=common"], ["init=mtl_lora"]], ids=lambda words: words[0])
def test_a_killed_group_goes_on_to_the_same_numbers(run, lorax, words, monkeypatch):
    from lorax.running.groups.curve import Curve

    words = ["dtype=float64", "train.checkpoint_every=2", *CLASSES, *words]
    whole, add = run(*words, name="whole"), Curve.add

    def killed(self, task, row):
        if row["step"] == 3:
            raise KeyboardInterrupt
        add(self, task, row)

    monkeypatch.setattr(Curve, "add", killed)
    assert lorax(*WORDS, *words, small=False) == 130 and not records()
    monkeypatch.setattr(Curve, "add", add)
    resumed = run(*words)
    assert resumed.provenance["resumed_at"] == 2 and resumed.curve == whole.curve
    assert resumed.scores == whole.scores and not list(Path("results/state/small").glob("*/*"))


def test_the_record_has_a_score_a_task_and_their_mean(run):
    record = run("dtype=float32", "share=A", "task.weights=[3,1]", *TWO)
    entry = record.scores["test"]
    for key in ("score", "loss"):
        assert entry[key] == pytest.approx(sum(own[key] for own in entry["tasks"].values()) / 2)
    assert (
        entry["n"] == 20 and entry["mean_over"] == "tasks" and [own["n"] for own in entry["tasks"].values()] == [8, 12]
    )
    first = record.curve[0]
    assert first["loss"] == pytest.approx(0.75 * first["loss/a"] + 0.25 * first["loss/b"])
    items = Store("results").items(record)
    assert [item["row"] for item in items] == list(range(20))
    assert [item["task"] for item in items] == 8 * ["a"] + 12 * ["b"]
    assert record.identity["share"] == "A" and record.identity["weights"] == [0.75, 0.25]
    assert [part["name"] for part in record.identity["task"]["parts"]] == ["a", "b"]
    assert record.init_report["step0_error"] == 0 and record.task["metric"] == "mean over 2 tasks of exact_match"
    data = json.loads(Path(f"results/records/small/{record.run_id}.json").read_text())
    assert data["config"]["task"]["parts"]["b"]["letters"] == 3
    from lorax.reports.verify import verify

    assert verify(Store("results"), "small").findings == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=packed"]], ids=["basic", "packed"])
def test_a_sweep_over_what_is_shared_has_a_column_a_task(lorax, launcher):
    words = ["-m", *launcher, *WORDS, "dtype=float32", "base=true", *TWO, "init=lora,mtl_lora", "share=none,A,common"]
    assert lorax(*words, small=False) == 0
    assert sorted(record.config["init"]["name"] for record in records()) == ["lora", "lora", "lora", "mtl_lora", "none"]
    lines = Path("results/tables/small.md").read_text().splitlines()
    heads = [cell.strip() for cell in lines[2].split("|")]
    assert heads[3:6] == ["a+b", "a", "b"]
    rows = [line.split("|")[1].strip() for line in lines[4:9]]
    assert rows == ["none", "lora share=A", "lora share=common", "lora share=none", "mtl_lora"]
    assert "- a+b: one run on all of a, b; its score is the mean over tasks." in lines


@pytest.mark.slow
def test_a_sweep_over_groups_of_tasks(lorax):
    words = ["-m", *WORDS, "dtype=float32", "task=group", "task.parts=[toy],{a: toy, b: toy}"]
    assert lorax(*words, small=False) == 0
    assert sorted(record.task["name"] for record in records()) == ["a+b", "toy"]


@pytest.mark.slow
@pytest.mark.parametrize("init", ["pissa", "lora_ga", "adalora", "houlsby", "orthogonal", "dora"])
def test_other_methods_train_in_a_group(run, init):
    record = run("dtype=float32", f"init={init}", *CLASSES)
    assert record.status == "finished" and len(record.curve) == 4


@pytest.mark.slow
def test_dropout_accumulation_and_autocast_in_a_group(run):
    record = run("dtype=bf16-autocast", "dropout=0.1", "train.accumulation=2", "share=common", *CLASSES)
    assert record.status == "finished" and all(math.isfinite(row["loss"]) for row in record.curve)
    assert torch.isfinite(torch.tensor(record.scores["test"]["loss"]))
