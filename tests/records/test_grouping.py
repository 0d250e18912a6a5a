"""Which fields of runs make rows: those that vary, that the method consumed, and that somebody chose."""

from __future__ import annotations

from lorax.records import RunRecord, run_id
from lorax.records.grouping import Row, consumed, rows_of


def run(method="lora", rank=8, seed=0, label="", given=None, **fields):
    """A run whose method consumed `fields`, of which `given` were set by hand (all unless listed)."""
    shared = {key: fields.pop(key) for key in ("lr", "targets", "device") if key in fields}
    init = {"name": method, **({} if rank is None else {"rank": rank}), **fields}
    identity = {"init": init, "seed": seed, "task": {"name": "t", "digest": "d"}, "versions": {"training": 1}} | shared
    chosen = {key: fields[key] for key in (fields if given is None else given)}
    config = dict.fromkeys(fields) | {"init": {"name": method, **chosen}, "seed": seed, "task": {"name": "t"}}
    return RunRecord(run_id(identity), "s", "finished", config, identity, label=label, task={"name": "t"})


def labels(*records):
    rows = rows_of(list(records))
    return [rows[record.run_id].label for record in records]


def test_a_run_consumes_choices_not_stamps_nor_the_replicate():
    assert consumed(run(alpha=16, lr=0.1 * 3, targets=["v", "q"], device="cpu", seed=7)) == {
        "rank": 8, "alpha": 16, "lr": 0.3, "targets": ["q", "v"],
    }  # fmt: skip


def test_a_default_is_no_choice_unless_another_run_was_given_it():
    assert "alpha" not in consumed(run(alpha=16, given=()))
    assert labels(run(alpha=16, given=()), run(alpha=16, seed=1)) == ["lora", "lora"]
    assert labels(run(alpha=16, given=()), run(alpha=8)) == ["lora alpha=16", "lora alpha=8"]


def test_only_fields_that_vary_within_a_method_make_rows():
    assert labels(run(targets="q"), run("pissa", targets="v")) == ["lora", "pissa"]
    assert labels(run(targets="q"), run(targets="v")) == ["lora targets=q", "lora targets=v"]
    assert labels(run(width=4), run(rank=None)) == ["lora width=4", "lora"], "a field that one lacks varies too"


def test_a_learning_rate_makes_rows_only_where_all_else_is_equal():
    assert labels(run(lr=1e-3), run(rank=4, lr=2e-3)) == ["lora", "lora"]
    assert labels(run(lr=1e-3), run(lr=2e-3)) == ["lora lr=0.001", "lora lr=0.002"]


def test_a_label_names_a_row_that_no_other_setting_shares():
    assert labels(run(label="ours"), run("pissa", label="theirs")) == ["ours", "theirs"]
    assert labels(run(label="ours"), run("pissa", label="ours")) == ["lora", "pissa"]
    assert labels(run(label="ours"), run(rank=4, label="ours")) == ["ours", "ours"], "ranks are a column"
    assert labels(run(label="ours"), run(seed=1)) == ["lora", "lora"], "not all runs of the row carry it"


def test_rows_are_ordered_with_numbers_as_numbers_and_the_base_first():
    rows = [Row("lora", 8, (("zeta", "16"),)), Row("lora", 8, (("zeta", "4"),)), Row("none", None, (), True)]
    assert sorted(rows, key=lambda row: row.key) == rows[::-1]
