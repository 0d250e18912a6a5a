"""Stale runs are named; what was asked for otherwise is not stale; what is missing is not taken for equal."""

from lorax.records import RunRecord
from lorax.records.staleness import fresh, shown, variants


def run(seed, digest="new", when="2026", status="finished", init="lora", split="test", **fields):
    more = {"versions": fields.pop("versions", {"training": 1}), "task": fields.pop("version", {})}
    identity = {"init": {"name": init}, "seed": seed, "versions": more["versions"]}
    identity["task"] = {"name": "t", "digest": digest, "version": 1} | more["task"]
    config = {"task": {"name": "t", "n_test": 10, "lr": 1e-3} | fields, "seed": seed, "data_seed": 0, "evaluate": split}
    return RunRecord(
        f"{init}{seed}{digest}{fields}{more}{status}{split}", "s", status, config, identity, task={"name": "t"},
        scores={} if status == "failed" else {split: {"score": 0.5, "n": 10}}, provenance={"finished": when},
    )  # fmt: skip


def stale(*records):
    reasons = fresh(records)[1]
    return {record.config["seed"]: reasons[record.run_id] for record in records if record.run_id in reasons}


def test_older_data_are_stale_whatever_else_the_configuration_says():
    for fields in ({}, {"lr": 2e-3}, {"steps": 50}):  # a run's defaults, or a field that older records lack
        old, new = run(0, "old", "2025", **fields), run(1)
        assert stale(old, new) == {0: "another task.digest"}
    assert stale(run(0, "old", "2025"), run(1, shots=5)) == {0: "another task.digest"}


def test_a_field_that_was_asked_for_is_no_age():
    few, many = run(0, "few", "2025", n_test=5), run(1, "many")
    assert not stale(few, many)
    assert variants([few, many]) == {few.run_id: {"task.n_test": 5}, many.run_id: {"task.n_test": 10}}
    assert stale(run(0, "few", "2025", n_test=5, version={"version": 0}), many) == {0: "another task.version"}
    assert not variants([run(0, path="/a"), run(1, path="/b")]), "the same data at two places"


def test_what_no_field_explains_is_told_by_its_digest():
    one, two = run(0, "a" * 9), run(1, "b" * 9)
    assert variants([one, two])[two.run_id] == {"task.digest": "b" * 8}


def test_a_version_that_came_later_outdates_records_without_it():
    assert stale(run(0, when="2025"), run(1, versions={"training": 1, "new": 2})) == {0: "no versions.new"}
    assert stale(run(0, None, "2025"), run(1)) == {0: "no task.digest"}


def test_how_masks_are_drawn_concerns_runs_with_dropout_alone():
    older, dropping, newer = run(0, when="2025"), run(1, when="2025"), run(2)
    dropping.identity["dropout"] = newer.identity["dropout"] = 0.1
    newer.identity["masks"] = {"version": 2}
    assert stale(older, dropping, newer) == {1: "no masks.version"}


def test_a_failed_run_outdates_nothing():
    assert stale(run(0), run(1, "broken", "2027", "failed")) == {1: "another task.digest"}


def test_runs_for_validation_are_left_out_of_a_table_of_test_scores():
    runs = [run(0), run(1, split="validation"), run(2, status="failed"), run(3, status="failed", split="validation")]
    kept, out, _, split = shown(runs)
    assert split == "test" and [one.config["seed"] for one in kept] == [0, 2]
    assert [one.config["seed"] for one in out] == [1, 3]
    assert shown(runs[1:2])[3] == "validation"
