"""Facts of a record have one reader each: the learning rate above all, wherever a record holds it."""

from __future__ import annotations

import pytest

from lorax.records import RunRecord
from lorax.records.fields import entry, is_frozen, learning_rate, one_per_seed, stamps
from lorax.reports.sweep import read_sweep
from lorax.studies.jobs import Job, answers

BASE = {"init": {"name": "lora"}, "seed": 0}


def run(identity=None, config=None, **more):
    config = {"init": {"name": "lora"}, "lr": None, "seed": 0, "task": {"name": "t"}} | (config or {})
    return RunRecord("a", "sweep", "finished", config, BASE | {"lr": 1e-3} if identity is None else identity, **more)


@pytest.mark.parametrize(
    "record, rate",
    [
        (run(), 1e-3),
        (run(BASE | {"lr": 0.1 * 3}), 0.3),  # to twelve digits
        (run(BASE | {"lr": 1e-3}, {"lr": 5.0}, init_report={"lr": 7.0}), 1e-3),  # what was consumed comes first
        (run({}, {"lr": 2e-3}), 2e-3),  # a record whose identity says nothing
        (run({}, init_report={"lr": 3e-3}), 3e-3),  # `lr=null`, resolved when the run was made
        (run({}), None),
        (run(BASE, {"lr": 1e-3}), None),  # a method that consumes no rate, whatever the configuration holds
        (run(costs={"trainable": 0}), None),
    ],
)
def test_the_learning_rate_of_a_record_is_the_one_it_trained_at(record, rate):
    assert learning_rate(record) == rate


def test_tables_and_studies_read_the_same_rate():
    record = run({}, {"lr": 2e-3, "evaluate": "test"}, task={"name": "t"}, label="lora")
    record.scores = {"test": {"score": 0.5, "n": 10}}
    assert list(read_sweep([record]).frame()["lr"]) == [learning_rate(record)] == [2e-3]
    job = Job("lora", "t", "final", 2e-3, 0, {"evaluate": "test"})
    assert answers(record, job)
    assert not answers(record, Job("lora", "t", "final", 1e-3, 0, {"evaluate": "test"}))


def test_a_failed_run_has_no_count_of_parameters_and_its_rate_says_whether_it_trains():
    assert is_frozen(run(BASE)) and not is_frozen(run())
    assert is_frozen(run(costs={"trainable": 0})) and not is_frozen(run(BASE, costs={"trainable": 8}))


def test_stamps_are_digests_and_versions_wherever_they_stand():
    identity = BASE | {"task": {"name": "t", "digest": "d0"}, "versions": {"training": 1}}
    record = run(identity, task={"name": "t", "version": 2}, model={"name": "toy", "digest": "m0"})
    assert stamps(record) == {"task.digest": "d0", "versions.training": 1, "task.version": 2, "model.digest": "m0"}
    assert entry(record, "model")["name"] == "toy"


def test_of_several_records_of_a_seed_the_last_that_did_not_fail_counts():
    runs = [run(provenance={"finished": when}) for when in ("2026-01-02", "2026-01-01", "2026-01-03")]
    runs[2].status = "failed"
    assert one_per_seed(runs) == [runs[0]] and one_per_seed(runs[2:]) == [runs[2]]
