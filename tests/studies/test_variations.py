"""Sensitivity: which runs are asked for around the design, after all others, and what the report says of them."""

from __future__ import annotations

import pytest

from lorax.errors import UserError
from lorax.records import Store
from lorax.reports import measures
from lorax.reports.audit.audit import audit
from lorax.reports.frames.sensitivity import sensitivity
from lorax.reports.frames.study import asymmetries
from lorax.reports.frames.study import test_scored as scored_on_test
from lorax.reports.threats import threats
from lorax.studies.parse import from_mapping
from lorax.studies.plan import bind, plan
from lorax.studies.registration import digest, freeze, frozen
from lorax.studies.rounds import next_round
from lorax.studies.study import read_study
from tests.made_study import made_record

ARMS = ["lora", "pissa", {"init": "lora", "label": "rslora", "rank": 32},
        {"init": "none", "label": "base", "trained": False}]  # fmt: skip
DATA = {
    "name": "demo", "model": "toy", "tasks": ["words"], "arms": ARMS, "margin": 0.02, "reference": "lora",
    "estimand": "rate", "tuning": False, "costs": False, "seeds": [0, 1, 2, 3, 4, 5],
    "sensitivity": {"rank": [4, 16], "steps": [30]},
}  # fmt: skip


def consumed(overrides):
    """What a made record consumes of these overrides: all but the lr, which a study without tuning leaves open."""
    given = dict(text.split("=", 1) for text in overrides)
    trained = given["init"] != "none"
    init = {"name": given["init"]}
    if trained:
        init |= {"rank": int(given.get("rank", 8)), "alpha": 16, "scaling": "standard"}
    fields = {"init": init, "task": {"name": "words"}, "model": {"name": "toy"}, "dtype": "float32", "data_seed": 0,
              "versions": {"training": 1}, "evaluate": "test"}  # fmt: skip
    if trained:
        fields |= {"batch_size": 8, "targets": "all", "lr": None, "seed": 0, "steps": int(given.get("steps", 60))}
    return fields


def bound(**changes):
    return bind(from_mapping(DATA | changes), lr=lambda words: 1e-3, consumes=consumed)


def answered(spec, store, stop=None):
    """Drive the rounds; return the kinds in order and the jobs of the last."""
    records, kinds = [], []
    for _ in range(6):
        this = next_round(spec, records)
        kinds.append((this.kind, len(this.jobs)))
        if this.kind in ("done", stop):
            return kinds, this.jobs
        for job in this.jobs:
            record, rows = made_record(job)
            store.write(record, rows)
            records.append(record)
    raise AssertionError(kinds)


def test_variations_run_last_for_arms_that_do_not_set_the_value_themselves(tmp_path):
    spec, store = bound(), Store(tmp_path)
    freeze(spec, tmp_path)
    kinds, _ = answered(spec, store)
    assert [kind for kind, _ in kinds] == ["final", "vary", "done"]
    per_seed = 3 + 3 + 1  # rslora sets its rank itself; the frozen base varies nothing
    assert kinds[1] == ("vary", per_seed * 5) and kinds[0] == ("final", 3 * 6 + 1)
    study = read_study(frozen(tmp_path, "demo"), store)
    assert study.complete and not study.unasked
    assert {place[1:] for place in study.varied} == {
        (arm, vary) for arm in ("lora", "pissa") for vary in (("rank", 4), ("rank", 16), ("steps", 30))
    } | {("rslora", ("steps", 30))}
    assert len(scored_on_test(study)) == kinds[0][1] + kinds[1][1]
    assert all(len(runs) == 6 for (_, arm), runs in study.finals.items() if arm != "base"), "finals stay at the design"


def test_the_block_holds_differences_at_the_same_value(tmp_path):
    spec, store = bound(), Store(tmp_path)
    freeze(spec, tmp_path)
    answered(spec, store)
    study = read_study(frozen(tmp_path, "demo"), store)
    found = {(one.arm, one.measure): one for one in sensitivity(study)}
    pair = [study.varied["words", arm, ("rank", 4)] for arm in ("pissa", "lora")]
    mean = sum(pair[0][s].score("test", "score") - pair[1][s].score("test", "score") for s in range(5)) / 5
    assert found["pissa", "at rank=4"].value == pytest.approx(mean) and found["pissa", "at rank=4"].note == "5 seeds"
    assert ("rslora", "at rank=4") not in found and ("rslora", "at steps=30") in found
    part = measures.sensitivity_part(study)
    assert part.tables[0].head == ["arm", "as designed", "rank=4", "rank=16", "steps=30"]
    assert "nothing is tuned again" in part.lines[1] and part.tables[0].body[1][0] == "rslora"
    assert part.tables[0].body[1][2] == "-"


def test_the_rest_of_the_report_and_the_audit_know_them(tmp_path):
    spec, store = bound(), Store(tmp_path)
    freeze(spec, tmp_path)
    answered(spec, store)
    study = read_study(frozen(tmp_path, "demo"), store)
    assert any("one task, words:" in line for line in threats(study, asymmetries(study)))
    assert not [one.line() for one in audit(store, "demo", git=False).findings if one.kind == "runs"]
    assert "are not counted here" in measures.search_part(study).lines[-1]
    assert "alpha / rank changes with the rank" in measures.sensitivity_part(study).lines[-1]


def test_verdicts_do_not_change_and_the_key_is_in_the_digest_only_where_it_is_used(tmp_path):
    without = bound(sensitivity={})
    assert "sensitivity" not in without.plain()
    assert digest(without) == digest(bound(sensitivity=None)) != digest(bound())
    stores = [Store(tmp_path / name) for name in ("with", "without")]
    for spec, store in zip((bound(), without), stores, strict=True):
        freeze(spec, store.root)
        answered(spec, store)
    results = [read_study(frozen(store.root, "demo"), store).result for store in stores]
    assert results[0].comparisons == results[1].comparisons
    assert measures.sensitivity_part(read_study(without, stores[1])) is None


def test_the_plan_counts_them():
    planned = plan(bound())
    assert planned.jobs["vary"] == 35 and any("vary: 35 runs" in line for line in planned.lines)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": [1e-3]}, "sensitivity.lr: rates are tuned"),
        ({"rank": 4}, "sensitivity.rank=4: a list of plain values is needed"),
        ({"rank": []}, "a list of plain values is needed"),
        ({"rank": [4, 4]}, "4 occurs twice"),
        ({"rank": [[4]]}, "a list of plain values is needed"),
        ([4], "a mapping is needed"),
        ({"rank": {"a": 1}}, "a plain value or a list is needed"),
    ],
)
def test_what_cannot_be_varied_is_one_line(given, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        from_mapping(DATA | {"sensitivity": given})


def test_labels_alone_cannot_tell_values_apart():
    with pytest.raises(UserError, match="sensitivity needs to know what a run consumes"):
        bind(from_mapping(DATA), lr=lambda words: 1e-3)
