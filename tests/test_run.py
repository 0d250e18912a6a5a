"""The command line, whole: records, twins, failures, kills, packing; on the toy model."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lorax import load
from lorax.initializers.registry import get, names
from lorax.records import Store

SMALL = ["model=toy", "task=toy", "steps=4", "track=none", "dtype=float32", "task.n_test=20", "name=small"]


def records(results="results", name="small"):
    return {record.run_id: record for record in Store(results).read(name)}


def test_a_run_leaves_record_items_and_table_and_is_not_repeated(lorax, capsys):
    assert lorax("init=lora_ga", "rank=2") == 0
    out = capsys.readouterr().out
    first = records()
    base, run = sorted(first.values(), key=lambda record: record.costs["trainable"])
    assert base.config["init"]["name"] == "none" and run.status == "finished"
    assert run.init_report["step0_error"] == 0 and len(run.curve) == 4
    assert run.costs["trainable"] == sum(2 * (m + n) for m, n in shapes())
    covered = run.init_report["coverage"]
    assert covered["layers"] == len(shapes()) and set(covered["left_out"]) == {"embedding", "output head"}
    assert covered["share"] + sum(each["share"] for each in covered["left_out"].values()) == pytest.approx(1)
    assert f"{len(shapes())} layers, {100 * covered['share']:.1f} % of the weights" in " ".join(out.split())
    assert "coverage" not in base.init_report
    items = Store("results").items(run)
    assert len(items) == run.scores["test"]["n"] == 20
    assert sum(item["score"] for item in items) / 20 == run.scores["test"]["score"]
    assert Path("results/tables/small.md").is_file() and "lora_ga rank 2" in out
    assert lorax("init=lora_ga", "rank=2") == 0
    assert "skipped" in capsys.readouterr().out and records() == first


def test_a_run_on_own_data_says_what_it_read_before_it_starts_and_in_its_record(lorax, capsys):
    lines = ["text\tlabel", *(f'"word {i % 25}\t{i % 2}' for i in range(60))]
    Path("mine.tsv").write_text("\n".join(lines) + "\n")
    words = ["task=jsonl", "task.path=mine.tsv", 'task.template="Say:\\n{text}"', "task.answer=label", "base=false"]
    assert lorax(*words) == 0
    said = "read 60 rows, kept 25, dropped 35 (same prompt and answer: 10, same prompt, another answer: 25)"
    assert capsys.readouterr().out.startswith(f"task jsonl: {said}\n")
    assert [record.task["data"] for record in records().values()] == [said]


def test_a_run_has_finished_when_it_has_been_scored(lorax, monkeypatch):
    from lorax.running import execute
    from lorax.running.session import Session

    clock, score = ["before"], Session.evaluate
    monkeypatch.setattr(execute, "now", lambda: clock[0])
    monkeypatch.setattr(Session, "evaluate", lambda self: [clock.__setitem__(0, "scored"), score(self)][1])
    assert lorax("init=lora", "rank=2", "base=false") == 0
    assert [record.provenance["finished"] for record in records().values()] == ["scored"]


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}])
def test_threads_wait_briefly_unless_the_user_has_said_how(given):
    from lorax.run import calm_threads

    environment = {}
    calm_threads(environment)
    assert environment == {"GOMP_SPINCOUNT": "1000"}
    environment = dict(given)
    calm_threads(environment)
    assert environment == given


def test_the_command_line_calms_threads_before_it_does_anything(monkeypatch):
    from lorax import run

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "taken back afterwards")
        monkeypatch.delenv(name)
    seen = []
    monkeypatch.setattr(run, "_outcome", lambda: (seen.append(os.environ.get("GOMP_SPINCOUNT")), (0, ""))[1])
    run.main()
    assert seen == ["1000"]


def shapes():
    from lorax.adapters.install import find_targets
    from lorax.models.registry import skeleton

    return [tuple(module.weight.shape) for module in find_targets(skeleton({"name": "toy"}).model).values()]


def test_a_start_that_is_not_the_base_is_measured_run_by_run(lorax):
    def errors(where, order, *launcher):
        grid = ["-m", "init=lora_xs", f"init.noise={order}", "rank=2", "base=false", *launcher]
        assert lorax(*grid, results=where) == 0
        return {run.config["init"]["noise"]: run.init_report["step0_error"] for run in records(where).values()}

    single = errors("single", "0,0.05")
    for where, order in (("packed", "0,0.05"), ("turned", "0.05,0")):
        packed = errors(where, order, "hydra/launcher=packed")
        assert single[0] == packed[0] == 0 and single[0.05] > 1e-4
        assert packed[0.05] == pytest.approx(single[0.05], rel=1e-3)
        said = {r.config["init"]["noise"]: r.init_report.get("starts_at_base") for r in records(where).values()}
        assert said == {0: None, 0.05: False}


def test_what_only_a_run_resolves_still_tells_jobs_and_rows_apart(lorax):
    """A prior's rate is no twin of another's, and `init.alpha` makes rows as `alpha` does."""
    assert lorax("-m", "init=lora", "init.lr_prior=1,20", "base=false", results="prior") == 0
    assert len({record.identity["lr"] for record in records("prior").values()}) == 2
    assert lorax("-m", "init=lora", "lr=0.05", "+init.alpha=2,64", "base=false", results="alpha") == 0
    rows = [
        line for line in next(Path("alpha/tables").glob("*.md")).read_text().splitlines() if line.startswith("| lora")
    ]
    assert len(records("alpha")) == len(rows) == 2


def test_twins_run_once_and_zeta_does_not_split_lora(lorax):
    assert lorax("-m", "init=svft,lora", "rank=2,4", "zeta=4,16", "base=false") == 0
    methods = [(record.config["init"]["name"], record.identity["init"].get("rank")) for record in records().values()]
    assert sorted(methods, key=str) == [("lora", 2), ("lora", 4), ("svft", None)]


def test_a_failing_job_is_recorded_and_the_others_finish(lorax, monkeypatch, capsys):
    def broken(self, probe):
        raise RuntimeError("the disk ate it")

    monkeypatch.setattr(get("pissa"), "__call__", broken)
    assert lorax("-m", "init=pissa,lora", "rank=2", "base=false") == 1
    status = {record.config["init"]["name"]: (record.status, record.error) for record in records().values()}
    assert status["lora"] == ("finished", None)
    assert status["pissa"] == ("failed", "RuntimeError: the disk ate it")
    assert "the disk ate it" in capsys.readouterr().err
    monkeypatch.undo()


LINEAR = [
    name for name in names() if get(name).has_factors and get(name).adapts == "linear" and not get(name).shared_by_tasks
]
EACH_KIND = ["lora", "lora_plus", "lora_ga", "eva", "svft", "svf", "adalora", "dylora", "dora", "vera"]
"""Adapters and rules of every kind: other methods differ from these in their numbers alone."""


@pytest.mark.parametrize("methods", [EACH_KIND, pytest.param(LINEAR, marks=pytest.mark.slow)], ids=["kinds", "all"])
def test_a_packed_grid_writes_the_records_of_single_runs(lorax, methods):
    grid = ["-m", f"init={','.join(methods)}", "rank=2", "base=false"]
    assert lorax(*grid, results="single") == 0
    assert lorax(*grid, "hydra/launcher=packed", results="packed") == 0
    single, packed = records("single"), records("packed")
    assert single.keys() == packed.keys() and len(single) == len(methods)
    for key, record in single.items():
        other = packed[key]
        assert len(other.provenance["pack"]["lanes"]) > 1 and other.costs["step_ms"] is None
        assert [row["loss"] for row in other.curve] == pytest.approx([row["loss"] for row in record.curve], rel=1e-5)
        scored = {split: entry["score"] for split, entry in record.scores.items()}
        assert {split: entry["score"] for split, entry in other.scores.items()} == scored


def test_a_pack_starts_every_gradient_and_every_head_from_its_own_seed(lorax):
    grid = ["-m", "task=toy_classification", "init=lora_ga", "rank=2", "seed=0,1", "base=false"]
    assert lorax(*grid, results="single") == 0
    assert lorax(*grid, "hydra/launcher=packed", "save=saved", results="packed") == 0
    single, packed = records("single"), records("packed")
    assert single.keys() == packed.keys() and len(single) == 2
    for key, record in single.items():
        losses = [row["loss"] for row in record.curve]
        assert [row["loss"] for row in packed[key].curve] == pytest.approx(losses, rel=1e-5)
        model = load_model(record)
        adapters = load(model, Path("saved") / key)
        assert model.score.weight.abs().sum() > 0 and len(adapters.names()) == len(shapes())


def load_model(record):
    from lorax.models.registry import load as load_by_spec

    return load_by_spec(record.config["model"], labels=list("abcd"), seed=7).model


def test_full_fine_tuning_counts_and_saves_its_head_once(lorax):
    assert lorax("task=toy_classification", "init=full", "save=saved") == 0
    base, run = sorted(records().values(), key=lambda record: record.costs["trainable"])
    assert run.costs["trainable"] == run.costs["total"] and run.costs["share"] == 1
    assert run.costs["bytes"] == 4 * run.costs["total"]
    model = load_model(run)
    load(model, Path("saved") / run.run_id)
    fresh = load_model(run).score.weight
    assert not torch.equal(model.score.weight, fresh)


def test_the_frozen_base_is_one_run_whatever_the_seed(lorax):
    for seed in (0, 1):
        assert lorax("task=toy_classification", "init=none", f"seed={seed}", results=f"seed{seed}") == 0
    first, second = (list(records(f"seed{seed}").values())[0] for seed in (0, 1))
    assert first.run_id == second.run_id and first.scores == second.scores


def test_seed_moves_the_run_and_not_the_data(lorax):
    assert lorax("-m", "init=lora", "rank=2", "seed=0,1,2", "base=false") == 0
    runs = list(records().values())
    assert len({record.curve[0]["loss"] for record in runs}) == 3
    assert len({record.task["digest"] for record in runs}) == 1
    ids = [{item["id"] for item in Store("results").items(record)} for record in runs]
    assert ids[0] == ids[1] == ids[2]


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    words = [sys.executable, "-m", "lorax.run", "-m", *SMALL, "init=lora,pissa,lora_xs", "rank=2", "seed=0,1"]
    words += ["steps=40", "train.checkpoint_every=5"]
    environment = os.environ | {"LORAX_CACHE": str(tmp_path / "cache")}
    whole = subprocess.run([*words, f"results_dir={tmp_path}/whole"], cwd=tmp_path, env=environment)
    assert whole.returncode == 0
    for _ in range(3):
        process = subprocess.Popen([*words, f"results_dir={tmp_path}/killed"], cwd=tmp_path, env=environment)
        before = len(list((tmp_path / "killed").rglob("*.json")))
        while process.poll() is None and len(list((tmp_path / "killed").rglob("*.json"))) < before + 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run([*words, f"results_dir={tmp_path}/killed"], cwd=tmp_path, env=environment).returncode == 0
    one, two = (Store(tmp_path / name).read("small") for name in ("whole", "killed"))
    assert [(r.run_id, r.curve, r.scores) for r in one] == [(r.run_id, r.curve, r.scores) for r in two]
    assert not list((tmp_path / "killed" / "state").rglob("*.pt"))


@pytest.mark.slow
def test_joblib_runs_the_same_grid(tmp_path):
    words = [sys.executable, "-m", "lorax.run", "-m", *SMALL, "init=lora,pissa", "rank=2", "base=false"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"results_dir={tmp_path}/results"]
    assert subprocess.run(words, cwd=tmp_path).returncode == 0
    assert len(Store(tmp_path / "results").read("small")) == 2


@pytest.mark.parametrize(("dtype", "within"), [("float64", 1e-12), ("bf16-autocast", 5e-3)])
@pytest.mark.slow
def test_a_pack_is_its_single_runs_up_to_rounding(lorax, dtype, within):
    """What README promises, by precision; float32 is checked for all methods above. `within` is relative."""
    grid = ["-m", "init=lora,pissa,lora_ga", "rank=2", "seed=0,1", "base=false", f"dtype={dtype}", "steps=10"]
    assert lorax(*grid, results="single") == 0
    assert lorax(*grid, "hydra/launcher=packed", results="packed") == 0
    single, packed = records("single"), records("packed")
    assert single.keys() == packed.keys() and len(single) == 6
    for key, record in single.items():
        losses = [row["loss"] for row in record.curve]
        assert [row["loss"] for row in packed[key].curve] == pytest.approx(losses, rel=within)
        assert packed[key].scores["test"]["loss"] == pytest.approx(record.scores["test"]["loss"], rel=within)
