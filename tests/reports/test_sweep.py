"""The table of a sweep: rows, twins, failures, stale records, notes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorax.errors import UserError
from lorax.records import RunRecord, Store, run_id
from lorax.reports.sweep import read_sweep, write_sweep
from lorax.reports.text import markdown


def record(method="lora", seed=0, score=0.5, task="toy", rank=8, status="finished", lr=1e-3, digest="d0", **fields):
    init = {"name": method, **fields}
    identity = {"init": init, "seed": seed, "lr": lr, "task": {"name": task, "digest": digest}}
    if rank is not None:
        identity["init"] = init | {"rank": rank}
    done = status == "finished"
    frozen = method == "none"
    return RunRecord(
        run_id=run_id(identity),
        name="sweep",
        status=status,
        error=None if done else "boom",
        config={
            "init": init,
            "rank": rank or 4,
            "lr": lr,
            "seed": seed,
            "task": {"name": task},
            "data_seed": 0,
        },
        identity=identity,
        task={"name": task, "metric": "exact match", "digest": digest},
        model={"name": "toy"},
        scores={"test": {"score": score, "n": 200}, "base_test": {"score": 0.125, "n": 200}} if done else {},
        init_report={"eta": 2.0, "step0_error": 1e-7, "base_lr": 1e-3, "lr_prior": 1.0, "lr": lr},
        costs={"trainable": 0 if frozen else 1024},
        provenance={"finished": f"2026-01-0{1 + seed}" if digest == "d0" else "2025-01-01"},
    )


def table_of(records):
    return read_sweep(records).frame()


def text_of(records):
    return markdown.render(read_sweep(records).document("sweep"))


def test_the_page_holds_scores_settings_and_notes(tmp_path):
    """A whole page, as an example: mean ± SD over seeds, a failure beside them, the base, what stands below."""
    store = Store(tmp_path)
    for seed in (0, 1):
        store.write(record(seed=seed, score=0.5 + 0.1 * seed))
        store.write(record("svft", seed=seed, rank=None, score=0.25))
    store.write(record("svft", seed=2, rank=None, status="failed"))
    text, paths = write_sweep(store, "sweep")
    assert text == paths[0].read_text() and text.startswith("# sweep\n")
    lines = text.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, _, *body = cells
    names = ("method", "rank", "toy", "eta", "lr", "trained", "step-0 error")
    assert [[line[head.index(name)] for name in names] for line in body] == [
        ["base", "-", "12.5 (1)", "-", "-", "0", "-"],
        ["lora", "8", "55.0 ± 7.1 (2)", "2", "0.001", "1,024", "1e-07"],
        ["svft", "-", "25.0 ± 0.0 (2, 1 failed)", "2", "0.001", "1,024", "1e-07"],
    ]
    notes = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    assert "toy: exact match, 200 items." in notes and any("not tuned on these runs" in note for note in notes)
    assert f"Failed {record('svft', seed=2, rank=None, status='failed').run_id}: boom" in notes
    assert paths[1].read_text().startswith("method,rank,toy_mean,toy_sd,toy_n,toy_failed,toy_diverged,eta,lr,")


def test_methods_that_start_elsewhere_by_design_are_named():
    moved = replace(record("lora_one"), init_report={"starts_at_base": False, "step0_error": 0.4})
    assert "Step 0 is not the base model, by design: lora_one." in text_of([record(), moved])
    assert "by design" not in text_of([record(), record("pissa")])


def test_rows_tell_swept_settings_apart_and_only_those():
    """Zeta splits the method that consumes it; seeds and tasks never split."""
    records = [record(seed=s, task=t) for s in (0, 1) for t in ("toy", "sum")]
    records += [
        record("lora_ga", seed=s, task=t, zeta=z, scaling="rslora")
        for s in (0, 1)
        for t in ("toy", "sum")
        for z in (4, 16)
    ]
    table = table_of(records)
    assert list(table["method"]) == ["base", "lora", "lora_ga zeta=4", "lora_ga zeta=16"]
    assert set(table["toy_n"][1:]) == {2} and set(table["sum_n"][1:]) == {2}


def test_a_learning_rate_splits_rows_only_where_nothing_else_explains_it():
    tuned = table_of([record(), record("pissa", lr=1e-4), record(rank=4, lr=2e-3)])
    assert list(tuned["method"]) == ["base", "lora", "lora", "pissa"]
    swept = [record(lr=1e-3), record(lr=1e-2), record("pissa")]
    assert list(table_of(swept)["method"]) == ["base", "lora lr=0.001", "lora lr=0.01", "pissa"]
    assert "not a tuned comparison" in text_of(swept)


def test_values_that_differ_in_the_fifth_digit_are_two_rows():
    table = table_of([record(lr=1e-3), record(lr=1.00004e-3), record("pissa")])
    assert list(table["method"]) == ["base", "lora lr=0.001", "lora lr=0.00100004", "pissa"]
    assert list(table_of([record(lr=1e-3), record(lr=2.00004e-3)])["method"])[1:] == [
        "lora lr=0.001",
        "lora lr=0.002",
    ]


def test_a_grid_over_a_field_of_the_task_makes_rows_and_no_stale_runs():
    def sized(n, seed, method="lora"):
        one = record(method, seed=seed, score=n / 100, digest=f"d{n}", rank=None if method == "none" else 8)
        one.config["task"] |= {"n_test": n, "path": f"/{seed}"}
        return one

    sweep = read_sweep([sized(n, seed) for n in (10, 20) for seed in (0, 1)])
    table = sweep.frame()
    assert [line.split()[1] for line in table["method"]] == ["task.n_test=10", "task.n_test=20"]
    assert list(table["toy_mean"]) == [0.1, 0.2] and not any("Stale" in note for note in sweep.notes)
    frozen = table_of([sized(n, 0, method) for n in (10, 20) for method in ("none", "lora")])
    assert sorted(frozen["toy_mean"]) == [0.1, 0.1, 0.2, 0.2]
    moved = [sized(10, seed) for seed in (0, 1)]  # the same data found at another place
    assert list(table_of(moved)["method"]) == ["base", "lora"]
    old = sized(10, 2)
    old.task["digest"] = old.identity["task"]["digest"] = "older"
    old.config["task"]["path"] = "/1"
    assert any("Stale" in note for note in read_sweep([*moved, old]).notes)


def test_a_default_and_the_same_value_given_are_one_row():
    def scaled(seed, alpha=None):
        one = record(seed=seed, alpha=alpha or 16.0)
        one.config["alpha"], one.config["init"] = alpha, {"name": "lora"}
        return one

    assert list(table_of([scaled(0), scaled(1)])["method"]) == ["base", "lora"]
    table = table_of([scaled(0), scaled(1, 16), scaled(0, 8)])
    assert dict(zip(table["method"], table["toy_n"], strict=True)) == {"base": 1, "lora alpha=8": 1, "lora alpha=16": 2}


def test_diagnostics_are_no_row_and_numbers_are_compared_as_numbers():
    looked = record(seed=1, lr=0.1 * 3)
    looked.identity["diagnostics"] = [1, 200, "rank=4"]
    targets = [record(seed=2, lr=0.3), record(seed=3, lr=0.3)]
    for one, names in zip(targets, (["q", "v"], ["v", "q"]), strict=True):
        one.identity["targets"] = names
    assert list(table_of([looked, record(lr=0.3)])["toy_n"]) == [1, 2]
    assert list(table_of(targets)["toy_n"]) == [1, 2]


def test_a_label_names_the_row_that_alone_carries_it():
    runs = [record(seed=0), record("pissa", seed=0), record("pissa", seed=1)]
    for one, label in zip(runs, ("mine", "ours", "ours"), strict=True):
        one.label = label
    assert list(table_of(runs)["method"]) == ["base", "mine", "ours"]
    runs[0].label = "ours"
    assert list(table_of(runs)["method"]) == ["base", "lora", "pissa"]


def test_a_failed_base_is_the_base_and_rates_by_hand_are_told_from_others():
    base, failed = record("none", rank=None), record("none", rank=None, seed=1, status="failed")
    for one in (base, failed):
        one.identity.pop("lr")
    failed.costs = {}
    hand = record("pissa", seed=0)
    hand.init_report["lr_given"] = True
    sweep = read_sweep([base, failed, record(), hand])
    assert [row.method for row in sweep.rows] == ["none", "lora", "pissa"]
    assert any("by hand in some rows" in note for note in sweep.notes)


def test_pivot_appears_with_ranks_and_the_frozen_arm_counts_once():
    records = [record(rank=r, seed=s, score=r / 100) for r in (4, 8) for s in (0, 1)]
    records += [record("none", rank=None, seed=s, score=0.1) for s in (0, 1)]
    table = table_of(records)
    assert list(table["toy_n"]) == [1, 2, 2] and table["method"][0] == "none"
    assert "rank 4 |" in text_of(records)
    assert "4.0 ± 0.0 (2)" in text_of(records)


def test_stale_and_diverged_runs_are_shown_never_mixed():
    old = record(seed=1, score=0.9, digest="old")
    records = [record(), old, record(seed=2, status="diverged")]
    table = table_of(records)
    line = table[table["method"] == "lora"].iloc[0]
    assert (line["toy_mean"], line["toy_n"], line["toy_diverged"]) == (0.5, 1, 1)
    assert f"Stale, left out: {old.run_id} (another task.digest)." in text_of(records)


def test_nothing_to_tabulate_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no records called 'sweep'"):
        write_sweep(Store(tmp_path), "sweep")
    with pytest.raises(UserError, match="no records"):
        table_of([])


def test_a_base_with_worked_examples_says_so():
    base, run = record("none", rank=None), record()
    for one in (base, run):
        one.config["task"]["shots"] = 5
    notes = read_sweep([base, run]).notes
    assert "toy: the base has 5 worked examples in its prompt, trained runs none." in notes
    assert not any("worked" in note for note in read_sweep([run]).notes)
