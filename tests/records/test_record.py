"""A record is one JSON object that reads back; a run's id is a digest of what it consumes."""

from __future__ import annotations

import json

import pytest

from lorax.errors import UserError
from lorax.records import SCHEMA, RunRecord, canonical, run_id
from lorax.records.record import content_digest


def test_equal_settings_have_one_id_however_they_are_written():
    one = {"rank": 8, "init": {"name": "lora", "alpha": 16.0}, "targets": ("q", "v")}
    other = {"targets": ["q", "v"], "init": {"alpha": 16, "name": "lora"}, "rank": 8.0}
    assert canonical(one) == canonical(other) and run_id(one) == run_id(other)
    assert run_id(one) != run_id(one | {"rank": 4}) and len(run_id(one)) == 16
    with pytest.raises(ValueError):
        canonical({"lr": float("nan")})


def test_a_record_reads_back_whole_and_unfinite_numbers_become_null():
    record = RunRecord("a", "s", "diverged", {"lr": 1e-3}, {"lr": 1e-3}, curve=[{"step": 1, "loss": float("inf")}])
    again = RunRecord.from_json(record.to_json())
    assert again.curve == [{"step": 1, "loss": None}] and again.config == record.config
    assert again.score("test") is None and RunRecord("a", "s", "x", {}, {}, scores={"test": {"n": 3}}).score() is None


def test_fields_that_a_newer_writer_added_are_passed_over():
    data = json.loads(RunRecord("a", "s", "finished", {}, {}).to_json()) | {"mood": "good"}
    del data["digest"]
    assert RunRecord.from_json(json.dumps(data)).run_id == "a"
    assert RunRecord.from_json(json.dumps(data | {"digest": content_digest(data)})).run_id == "a"


@pytest.mark.parametrize(
    "text, line",
    [
        ("{", "here: not JSON"),
        ("{}", "here: not a run record"),
        (json.dumps({"run_id": "a", "status": "", "config": {}, "identity": {}, "schema": SCHEMA + 1}), "reads up to"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(text, line):
    with pytest.raises(UserError, match=line) as caught:
        RunRecord.from_json(text, "here")
    assert "\n" not in str(caught.value)
