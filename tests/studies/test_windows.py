"""Estimand `method`: which runs a study asks for, how windows widen, and what is read back from the records."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from lorax.records import RunRecord, Store, canonical, run_id
from lorax.stats.best_rate import Window, compare
from lorax.studies.parse import from_mapping
from lorax.studies.plan import bind
from lorax.studies.rounds import next_round
from lorax.studies.study import read_study
from lorax.studies.tuning import rate

SEEDS = (0, 1, 2, 3, 4, 5)


def spec_of(**changes):
    data = {
        "name": "s", "model": "toy", "tasks": ["t"], "reference": "lora", "margin": 0.02, "seeds": list(SEEDS),
        "arms": ["lora", "pissa", {"init": "none", "trained": False}], "costs": None, "fixed": {"steps": 50},
    }  # fmt: skip
    return bind(from_mapping(data | changes), lr=lambda words: 1e-3)


def answer(job, peaks, pilot_peaks=None, loss=0.05):
    """A run that loses `loss` times the squared number of lattice steps from its arm's peak (a lattice point)."""
    finals = job.stage == "final"
    peak = (peaks if finals else peaks if pilot_peaks is None else pilot_peaks).get(job.arm, -12)
    k = None if job.lr is None else round(4 * math.log10(job.lr))
    noise = np.random.default_rng([job.seed, abs(k or 0), len(job.arm)]).normal(0, 0.002, 2)
    score = 0.2 if k is None else 0.8 - loss * (k - peak) ** 2
    splits = ["validation", "test"] if job.settings["evaluate"] == "both" else [job.settings["evaluate"]]
    identity = {"init": job.settings["init"], "lr": job.lr, "seed": job.seed, "evaluate": job.settings["evaluate"]}
    scores = {
        split: {"score": score + float(noise[at]), "loss": 1 - score, "n": 1000} for at, split in enumerate(splits)
    }
    task = {"name": job.task, "n_test": 1000}
    return RunRecord(
        run_id=run_id(identity), name="s", status="finished", config=identity | {"task": task}, identity=identity,
        label=job.arm, task=task, scores=scores, provenance={"finished": "1"},
    )  # fmt: skip


def play(spec, peaks, records=(), **how):
    known = {record.run_id: record for record in records}
    log = []
    for _ in range(12):
        this = next_round(spec, known.values())
        if this.kind == "done":
            return log, known
        log.append((this.kind, len(this.jobs)))
        known |= {record.run_id: record for record in (answer(job, peaks, **how) for job in this.jobs)}
    raise AssertionError(log)


def stored(spec, known, folder):
    store = Store(folder)
    for record in known.values():
        store.write(record)
    return read_study(spec, store)


def test_every_seed_runs_every_rate_of_the_window_and_a_frozen_base_one_series():
    log, known = play(spec_of(), {"lora": -12, "pissa": -13})
    assert log == [("tune", 2 * 6 * 2), ("final", 2 * 3 * 6 + 1)]
    finals = [record for record in known.values() if "test" in record.scores]
    assert {record.config["lr"] for record in finals if record.label == "pissa"} == {rate(k) for k in (-14, -13, -12)}
    assert all("validation" in record.scores for record in finals if record.label != "none")
    assert [record.config["evaluate"] for record in finals if record.label == "none"] == ["test"]
    tuned = [record for record in known.values() if "test" not in record.scores]
    assert {record.config["seed"] for record in tuned} == {101, 102}, "tuning never sees a final seed, nor test"


def test_a_window_widens_by_one_rate_while_its_best_is_at_the_edge(tmp_path):
    """The pilot put pissa two steps too low: twice one more rate on every seed of pissa, and its best is inside."""
    spec = spec_of(tuning={"rounds": 2})
    peaks, pilot = {"lora": -12, "pissa": -11}, {"lora": -12, "pissa": -13}
    log, known = play(spec, peaks, pilot_peaks=pilot)
    assert log == [("tune", 24), ("final", 37), ("widen", 6), ("widen", 6)]
    study = stored(spec, known, tmp_path)
    choice = study.choices["t", "pissa"]
    assert choice.pilot == rate(-13) and choice.lr == rate(-11) and choice.edge == ""
    assert choice.window == tuple(rate(k) for k in (-14, -13, -12, -11, -10))
    assert study.choices["t", "lora"].window == tuple(rate(k) for k in (-13, -12, -11))


def test_a_best_that_stays_at_the_edge_is_marked_and_never_worse(tmp_path):
    spec = spec_of(tuning={"rounds": 1})
    log, known = play(spec, {"lora": -12, "pissa": -4}, pilot_peaks={}, loss=0.02)
    assert log[-1] == ("widen", 6)
    study = stored(spec, known, tmp_path)
    assert study.complete and study.choices["t", "pissa"].edge == "high"
    comparison = study.result.comparison("t", "pissa")
    assert comparison.estimate < -0.03 and comparison.verdict == "undecided" and comparison.high == math.inf
    assert any("best lr of pissa is at the high edge" in note for note in study.remaining.notes)


def test_killed_anywhere_it_asks_for_exactly_the_rest():
    spec = spec_of(tuning={"rounds": 2})
    how = {"peaks": {"lora": -12, "pissa": -11}, "pilot_peaks": {"pissa": -13}}
    _, known = play(spec, **how)
    for seed in range(4):
        kept = random.Random(seed).sample(sorted(known), len(known) // 2)
        _, again = play(spec, records=[known[name] for name in kept], **how)
        assert {n: canonical(r.identity) for n, r in again.items()} == {
            n: canonical(r.identity) for n, r in known.items()
        }


def test_what_is_read_back_is_the_best_rate_interval_of_the_records(tmp_path):
    spec = spec_of()
    _, known = play(spec, {"lora": -12, "pissa": -13})
    study = stored(spec, known, tmp_path)
    assert study.complete and not study.unasked and study.result.estimand == "method"
    scores = {
        (record.label, split, record.config["lr"], record.config["seed"]): record.scores[split]["score"]
        for record in known.values()
        if record.config["evaluate"] == "both"
        for split in record.scores
    }
    windows = []
    for arm in ("pissa", "lora"):
        test, validation = (
            [[scores[arm, split, lr, seed] for seed in SEEDS] for lr in study.choices["t", arm].window]
            for split in ("test", "validation")
        )
        windows.append(Window.of(test, validation))
    c = study.result.comparison("t", "pissa")
    assert (c.low, c.high) == pytest.approx(tuple(float(end) for end in compare(*windows).interval(c.confidence)))
    assert c.verdict == "equivalent" and study.result.comparison("t", "none").verdict == "worse"
    assert study.result.arm("t", "pissa").lr == rate(-13) and set(study.windows["t", "pissa"]) == {
        rate(k) for k in (-14, -13, -12)
    }
    assert set(study.finals["t", "pissa"]) == set(SEEDS) and list(study.finals["t", "none"]) == [None]


def test_an_unfinished_study_says_what_it_has(tmp_path):
    """Half of the final runs: seeds that have every rate count, and nothing breaks where none has."""
    spec = spec_of()
    _, known = play(spec, {"lora": -12, "pissa": -13})
    finals = [record for record in known.values() if record.config["evaluate"] == "both"]
    rest = [record for record in known.values() if record not in finals]
    for at, kept in enumerate(
        ([], finals[:1], finals[: len(finals) // 2], [r for r in finals if r.config["seed"] < 3])
    ):
        study = stored(spec, {record.run_id: record for record in [*rest, *kept]}, tmp_path / str(at))
        assert not study.complete and study.remaining.kind == "final"
    assert study.result.comparison("t", "pissa").seeds == (0, 1, 2)
