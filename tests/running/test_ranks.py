"""A run whose training leaves several ranks: scored at each, saved at one, told in tables and figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorax import load
from lorax.config import RunConfig, check, resolve
from lorax.errors import UserError
from lorax.records import Store
from lorax.reports.verify import verify

SMALL = ["model=toy", "task=toy_classification", "steps=4", "track=none", "dtype=float64", "task.n_test=20",
         "name=small", "base=false"]  # fmt: skip


def words_of(path):
    return " ".join(path.read_text().split())


def loss_of(record, folder, rank=None):
    """Score a saved adapter anew."""
    from lorax.evaluation.evaluate import evaluate, summarise
    from lorax.models.registry import load as load_model
    from lorax.running.preflight import load_task

    task = load_task(resolve({**record.config, "study": None}))
    loaded = load_model(record.config["model"], labels=list(task.labels), dtype="float64")
    adapters = load(loaded.model, folder)
    if rank is None:
        return summarise(evaluate(loaded, task, "test", [adapters])[0])["loss"]
    with adapters.at_rank(rank):
        return summarise(evaluate(loaded, task, "test", [adapters])[0])["loss"]


@pytest.mark.slow
def test_one_training_is_scored_at_each_rank_and_saved_at_one(lorax):
    assert lorax(*SMALL, "init=dylora", "rank=4", "lr=0.05", "save=saved", "save_rank=2") == 0
    store = Store("results")
    (record,) = store.read("small")
    assert list(record.scores) == ["test", "test@1", "test@2"]
    losses = [entry["loss"] for entry in record.scores.values()]
    assert len(set(losses)) == 3 and all(entry["n"] == 20 for entry in record.scores.values())
    assert [item["split"] for item in store.items(record)].count("test@2") == 20
    assert not verify(store, "small").findings
    folder = Path("saved") / record.run_id
    assert loss_of(record, folder) == pytest.approx(losses[2], abs=1e-12)
    assert loss_of(record, folder, 1) == pytest.approx(losses[1], abs=1e-12)
    tables = Path("results/tables")
    assert "| dylora, trained once at rank 4 | 1 |" in words_of(tables / "small.md")
    assert len((tables / "small.ranks.csv").read_text().splitlines()) == 4
    assert Path("results/figures/small/score_by_rank.svg").is_file()


@pytest.mark.slow
def test_the_ranks_scored_can_be_fewer(lorax):
    assert lorax(*SMALL, "init=dylora", "rank=4", "init.scored=[]", "evaluate=both") == 0
    (record,) = Store("results").read("small")
    assert list(record.scores) == ["validation", "test"] and not list(Path("results").rglob("*ranks*"))


@pytest.mark.parametrize(
    "given,line",
    [
        ({"init": {"name": "lora"}, "save": "saved"}, "save_rank=2: init=lora trains one rank, its own"),
        ({"init": {"name": "full"}, "save": "saved"}, "save_rank=2: init=full trains one rank, its own"),
        ({"init": {"name": "dylora"}, "save": "saved", "save_rank": 9}, "save_rank=9: init=dylora at rank=8 has 1 to"),
        ({"init": {"name": "dylora"}}, "save_rank=2: nothing is saved; set save=<folder>"),
    ],
)
def test_a_rank_that_is_not_trained_is_one_line(given, line):
    toys = {"task": {"name": "toy", "kind": "classification"}, "model": {"name": "toy"}}
    with pytest.raises(UserError, match=line):
        check(RunConfig(**toys, **({"save_rank": 2} | given)))


@pytest.mark.slow
def test_pruned_ranks_are_in_record_table_and_figure(lorax):
    assert lorax(*SMALL, "init=adalora", "rank=2") == 0
    (record,) = Store("results").read("small")
    rule, layers = record.init_report["rule"], record.init_report["n_layers"]
    assert len(rule["ranks"]) == layers and sum(rule["ranks"].values()) == 2 * layers
    assert 0 < rule["live"] < record.costs["trainable"] - record.costs["head"]
    text = words_of(Path("results/tables/small.md"))
    assert f"| {rule['live'] + record.costs['head']:,} |" in text and "| trained | live |" in text
    assert Path("results/figures/small/rank_by_layer.png").is_file()
