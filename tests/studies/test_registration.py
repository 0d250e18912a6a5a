"""The design's file: read back whole, no change, no editing, and when it was fixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorax.errors import UserError
from lorax.reports.protocol import protocol
from lorax.studies.parse import from_mapping
from lorax.studies.plan import bind
from lorax.studies.registration import digest, estimand_of, fixed_at, freeze, frozen, frozen_path
from lorax.studies.study import read_study

COMMITTED = sorted((Path(__file__).parents[2] / "results" / "studies").glob("*.json"))
DATA = {"name": "s", "model": "toy", "tasks": ["t"], "reference": "lora", "margin": 0.01, "arms": ["lora", "svft"]}


def bound(**changes):
    return bind(
        from_mapping(DATA | changes),
        lr=lambda words: 2e-3,
        consumes=lambda words: {"init": {"name": words[0]}, "lr": None},
    )


def test_a_fixed_study_reads_back_whole_and_refuses_change(tmp_path):
    spec = bound()
    path = freeze(spec, tmp_path)
    assert frozen(tmp_path, "s") == spec and freeze(spec, tmp_path) == path
    freeze(replace(spec, question="reworded", assumed_sd=0.5), tmp_path)
    for changes, line in (
        ({"margin": 0.02}, "margin was fixed as 0.01 before the first run and is now 0.02"),
        ({"metric": "tolerant"}, 'metric was fixed as "score"'),
        ({"seeds": [0, 1]}, "seeds was fixed"),
        ({"arms": [*DATA["arms"], "pissa"]}, "was fixed"),
    ):
        with pytest.raises(UserError, match=line):
            freeze(bound(**changes), tmp_path)


def test_a_fixed_study_changed_by_hand_is_noticed(tmp_path):
    freeze(bound(), tmp_path)
    path = frozen_path(tmp_path, "s")
    path.write_text(path.read_text().replace('"margin": 0.01', '"margin": 0.05'))
    with pytest.raises(UserError, match="changed by hand"):
        frozen(tmp_path, "s")
    with pytest.raises(UserError, match="no study 'x'"):
        frozen(tmp_path, "x")


def test_the_report_says_when_the_design_was_fixed_and_what_had_started(demo, tmp_path):
    """The words follow from the file and the records: nothing is claimed that they do not bear out."""

    def sentence(at):
        return next(line for line in protocol(replace(study, fixed_at=at)) if "fixed" in line)

    study = read_study(frozen(demo.store.root, "demo"), demo.store)
    assert study.fixed_at == fixed_at(demo.store.root, "demo") is not None
    for record in next(iter(study.finals.values())).values():
        record.provenance["started"] = "2026-01-02T00:00:00+00:00"
    count = len(next(iter(study.finals.values())))
    assert "2026-01-02T00:00:00+00:00 (design" in sentence("2026-01-02T00:00:00+00:00")
    assert "before the first run" in sentence("2026-01-02T00:00:00+00:00")
    assert f"when {count} of" in sentence("2026-01-03T00:00:00+00:00")
    assert f"{count} of them final ones" in sentence("2026-01-03T00:00:00+00:00")
    assert "is not written down" in sentence(None)


def test_an_older_file_without_a_date_gets_none(tmp_path):
    path = freeze(bound(), tmp_path)
    since = fixed_at(tmp_path, "s")
    assert freeze(replace(bound(), question="reworded"), tmp_path) == path and fixed_at(tmp_path, "s") == since
    data = json.loads(path.read_text())
    del data["fixed"]
    path.write_text(json.dumps(data))
    freeze(bound(), tmp_path)
    assert fixed_at(tmp_path, "s") is None and fixed_at(tmp_path, "other") is None


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_studies_keep_their_digest(path, tmp_path):
    """A key that came after they were fixed is not stored at the value that they stand for."""
    kept = json.loads(path.read_text())
    spec = frozen(path.parents[1], path.stem)
    again = json.loads(freeze(spec, tmp_path).read_text())
    assert digest(spec) == again["digest"] == kept["digest"] and again["spec"] == kept["spec"]
    assert spec.estimand == "rate" and "estimand" not in kept["spec"]


def test_a_stored_design_without_an_estimand_is_about_the_selected_rates(tmp_path):
    """A new study is about methods; one that was fixed before there was the key goes on as it was, digest and all."""
    new, stated = bound(seeds=[0, 1]), bound(seeds=[0, 1], estimand="rate")
    assert new.estimand == "method" and digest(new) != digest(stated) and estimand_of(tmp_path, "s") is None
    path = freeze(stated, tmp_path)
    assert "estimand" not in json.loads(path.read_text())["spec"] and frozen(tmp_path, "s") == stated
    assert estimand_of(tmp_path, "s") == "rate"
    with pytest.raises(UserError, match="estimand was fixed as"):
        freeze(new, tmp_path)
    path.unlink()
    freeze(new, tmp_path)
    assert estimand_of(tmp_path, "s") == "method" and frozen(tmp_path, "s") == new


@pytest.mark.parametrize(
    "tuning, estimand, seeds", [({}, "method", 8), ({"points": 7}, "method", 8), (False, "rate", 6)]
)
def test_what_is_not_said_follows_from_the_tuning(tuning, estimand, seeds):
    spec = bound(tuning=tuning)
    assert (spec.estimand, len(spec.seeds)) == (estimand, seeds)
    assert len(bound(estimand="rate").seeds) == 6 and bound(seeds=[4]).seeds == (4,)


def test_a_claim_at_its_default_is_not_stored_and_another_one_changes_the_digest(tmp_path):
    """Designs from before there was `claim` stand for `difference`."""
    plain, same, other = (bound(**more) for more in ({}, {"claim": "difference"}, {"claim": "non_inferior"}))
    assert "claim" not in plain.plain() and digest(plain) == digest(same) != digest(other)
    freeze(other, tmp_path)
    assert frozen(tmp_path, other.name).claim == "non_inferior"
    with pytest.raises(UserError, match=r"claim=inferior: .*non_inferior"):
        bound(claim="inferior")
