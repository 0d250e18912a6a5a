"""Asymmetries: what the linter must see, and what it must not call a difference."""

from __future__ import annotations

from lorax.records import RunRecord
from lorax.reports.frames.asymmetries import footnotes, lint


def run(name, seed=0, task="words", alpha=16, rank=8, scaling="standard", frozen=False, own=None, **config):
    init = {"name": name} if frozen else {"name": name, "alpha": alpha, "rank": rank, "scaling": scaling, **(own or {})}
    values = {"seed": seed, "dtype": "float32", "steps": 60, "batch_size": 8, "dropout": 0.0, "targets": "all-linear"}
    values |= {"train": {"loss_mask": "answer", "schedule": "cosine"}} | config
    used = {"init": init, "dtype": values["dtype"]} if frozen else {"init": init, **values}
    everything = {"init": init, "rank": rank, "alpha": alpha, "zeta": 16, "lr": 0.1 * (seed + 1), **values}
    return RunRecord(f"{name}{seed}{task}", "s", "finished", everything, used, task={"name": task, "n_train": 480})


def fields(*rows, **options):
    return {item.field: item for item in lint({f"r{i}": row for i, row in enumerate(rows)}, **options)}


def test_every_published_asymmetry_is_seen():
    plain = [run("lora"), run("lora", seed=1)]
    other = run("pissa", alpha=8, scaling="rslora", dropout=0.1, dtype="bfloat16", targets=["q", "v"], steps=120,
                train={"loss_mask": "all", "schedule": "cosine"})  # fmt: skip
    differences = fields(plain, [other], trials={"r0": 12, "r1": 24})
    wanted = {
        "alpha / rank",
        "scaling",
        "dropout",
        "precision",
        "targets",
        "steps",
        "epochs",
        "loss mask",
        "tuning trials",
    }
    assert wanted == set(differences)
    assert differences["alpha / rank"].line() == "alpha / rank: 2 (r0), 1 (r1)"
    assert differences["epochs"].line() == "epochs: 1 (r0), 2 (r1)"


def test_who_the_rows_are_is_no_asymmetry():
    """Methods, their own fields, learning rates, seeds and ranks at one alpha / rank are what is compared."""
    assert not fields([run("lora")], [run("svft", seed=1, alpha=32, rank=16, own={"pattern": "banded"})])


def test_what_a_row_does_not_consume_is_no_difference():
    assert not fields([run("lora")], [run("none", frozen=True, dropout=0.5, steps=1, targets="none")])
    assert not fields([run("lora"), run("lora", task="sums", steps=120)], [run("pissa")]), "a task that one row lacks"


def test_other_data_are_an_asymmetry_by_the_field_that_made_them():
    rows = [run("lora"), run("pissa")]
    for one, n in zip(rows, (100, 200), strict=True):
        one.task["digest"], one.config["task"] = f"d{n}", {"name": "words", "n_test": n, "lr": n}
    assert fields(*[[row] for row in rows])["task.n_test"].line() == "task.n_test: 100 (r0), 200 (r1)"


def test_marks_point_at_the_rows_unlike_the_reference():
    differences = lint({"a": [run("lora")], "b": [run("pissa", dropout=0.1)], "c": [run("svft", dropout=0.1)]})
    lines, marks = footnotes(differences, "a")
    assert lines == ["dropout: 0 (a), 0.1 (b, c)"] and marks == {"b": [1], "c": [1]}
    assert footnotes(differences)[1] == {"a": [1]}, "without a reference the smaller side is marked"


def test_full_fine_tuning_of_a_sixteen_bit_base_is_an_asymmetry():
    """Its steps are rounded to the base's precision, an adapter's are not."""
    one, two = run("lora", dtype="bfloat16"), run("full", dtype="bfloat16")
    one.init_report["trained_dtype"], two.init_report["trained_dtype"] = "float32", "bfloat16"
    differences = fields([one], [two])["precision of what trains"]
    assert differences.line() == "precision of what trains: float32 (r0), bfloat16 (r1)"
