"""Every benchmark runs to its table on a tiny model; no time is asserted."""

from __future__ import annotations

import json
import re

import pytest
import torch

from benchmarks import report
from benchmarks.__main__ import NAMES, main
from benchmarks.goals import GOALS
from benchmarks.harness import Row, Spread, interleave
from benchmarks.subjects import Shape, batches_of, load, lorax_arm, lower_bound, peft_arm, rows_of, sharing_copy
from benchmarks.time_to_table import STUDIES
from lorax.tasks.registry import build

SLOW = ("switch", "operations", "init", "dropout", "packed")
QUICK = [name for name in NAMES if name not in ("time_to_table", "gpu")]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in QUICK])
def test_quick_run_writes_json_and_markdown(name, tmp_path, capsys):
    path = tmp_path / f"{name}.json"
    assert main([name, "--quick", "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["rows"] and written["runs"][0]["versions"]["torch"]
    assert all(row["value"]["low"] <= row["value"]["median"] <= row["value"]["high"] for row in written["rows"])
    assert path.with_suffix(".md").read_text() == capsys.readouterr().out.rstrip("\n") + "\n"


@pytest.mark.slow
def test_the_gpu_s_benchmark_runs_to_its_end_on_a_cpu(tmp_path):
    path = tmp_path / "gpu.json"
    assert main(["gpu", "--quick", "--device", "cpu", "--json", str(path)]) == 0
    rows = {row["measure"]: row["value"]["median"] for row in json.loads(path.read_text())["rows"]}
    assert rows["largest relative difference of a loss: graph / eager"] < 1e-2
    assert {"PEFT one by one / K=1 graph", "time to table: PEFT script / ours", "peak memory: PEFT"} <= rows.keys()
    assert all(rows[f"time to start, extrapolated: {method}"] > 0 for method in ("pissa", "milora", "lora_xs"))
    assert max(rows["sine, top 8"], rows["sine, bottom 8"]) <= 1e-4


def test_without_a_gpu_its_benchmark_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 2 and "no CUDA device" in capsys.readouterr().err
    assert main(["gpu", "--device", "cpu"]) == 2 and "only --quick" in capsys.readouterr().err


@pytest.mark.slow
def test_time_to_table_runs_both_sides(tmp_path):
    path = tmp_path / "time_to_table.json"
    assert main(["time_to_table", "--quick", "--json", str(path)]) == 0
    measures = {row["measure"] for row in json.loads(path.read_text())["rows"]}
    assert {"PEFT script / ours", "mean score, ours", "mean score, PEFT"} <= measures


def test_ratios_are_formed_within_rounds_and_orders_alternate():
    called = []
    timings = interleave({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, rounds=2, warmup=0)
    assert called == ["a", "b", "b", "a"]
    a, b = ([trial.seconds for trial in timings.trials[name]] for name in "ab")
    assert timings.ratio("a", "b") == Spread.of([x / y for x, y in zip(a, b, strict=True)])


def test_a_new_run_replaces_its_rows_and_keeps_the_others(tmp_path):
    from benchmarks.harness import Plan

    path, one = tmp_path / "step.json", Spread.of([1.0])
    for rows in ([Row("a", "x", "s", one), Row("b", "x", "s", one)], [Row("b", "x", "s", Spread.of([2.0]))]):
        report.publish("step", "Q?", rows, path, Plan())
    written = json.loads(path.read_text())
    assert {row["case"]: row["value"]["median"] for row in written["rows"]} == {"a": 1.0, "b": 2.0}
    assert [row["run"] for row in written["rows"]] == [0, 1] and len(written["runs"]) == 2


def test_every_goal_names_a_benchmark_and_the_index_lists_it(tmp_path):
    text = report.write_index(tmp_path)
    assert {goal.benchmark for goal in GOALS} <= set(NAMES)
    assert len(re.findall(r"not measured", text)) == len(GOALS)


def test_arms_do_the_same_work_on_shared_weights():
    loaded = load("tiny")
    shape = Shape("tiny", 4, 8)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    for arm in (
        lorax_arm(sharing_copy(loaded), shape),
        peft_arm(sharing_copy(loaded, "sdpa"), shape),
        lower_bound(sharing_copy(loaded), shape),
    ):
        assert arm().seconds > 0
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    batch, rows = batches_of(loaded, shape, 1)[0], rows_of(loaded, shape, 4)
    assert batch["input_ids"].shape == (4, 8)
    assert [len(row.ids) + len(row.labels) - 1 for row in rows] == [8] * 4


def test_the_lower_bound_stays_one_beside_an_arm_that_thaws_the_shared_weights():
    shape = Shape("tiny", 4, 8)
    loaded = load("tiny")
    bound = lower_bound(sharing_copy(loaded), shape, steps=1)
    loaded.model.requires_grad_(True)
    bound()
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_unknown_names_are_one_line(capsys):
    assert main(["stepp"]) == 2
    assert "step" in capsys.readouterr().err


@pytest.mark.parametrize("name", STUDIES)
def test_the_task_of_a_study_exists_for_the_script(name):
    spec = STUDIES[name].spec()
    assert build({**spec["task"], **STUDIES[name].fields}) and spec["model"]["name"] == STUDIES[name].model
