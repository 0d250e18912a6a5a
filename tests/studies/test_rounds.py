"""Rounds of a study: which jobs follow from which records, whatever was killed, failed or diverged."""

from __future__ import annotations

import math
import random

import pytest

from lorax.records import RunRecord, Store, canonical, run_id
from lorax.studies.job_index import JobIndex
from lorax.studies.jobs import Job
from lorax.studies.parse import from_mapping
from lorax.studies.plan import bind
from lorax.studies.rounds import next_round
from lorax.studies.study import read_study
from lorax.studies.tuning import grid, rate

PEAK = {"lora": 1e-3, "pissa": 1e-3, "svft": 1e-3}


def spec_of(**changes):
    data = {
        "name": "s",
        "model": "toy",
        "tasks": ["t"],
        "reference": "lora",
        "margin": 0.02,
        "estimand": "rate",
        "seeds": [0, 1, 2],
        "arms": ["lora", "pissa", {"init": "none", "trained": False}],
        "fixed": {"steps": 50},
    }
    return bind(from_mapping(data | changes), lr=lambda words: 1e-3, consumes=consumes)


def consumes(words: list[str]) -> dict:
    """What the method consumes, as the configuration would tell: svft no rank, none nothing trained."""
    given = dict(word.split("=", 1) for word in words)
    fields = {"init": {"name": given["init"]}, "task": {"name": given["task"]}, "model": {"name": given["model"]}}
    if given["init"] not in ("svft", "none"):
        fields["init"]["rank"] = int(given.get("rank", 8))
    if given["init"] != "none":
        fields |= {"steps": None, "lr": None, "seed": 0, "dropout": 0.0}
    return fields | {"evaluate": "validation", "dtype": "auto"}


def record(job: Job, score=None, status="finished", version=1, finished="1") -> RunRecord:
    settings = job.settings
    identity = consumes(job.overrides) | {"evaluate": settings["evaluate"], "dtype": "float32"}
    identity |= {"task": {"name": job.task, "digest": f"d{version}", "version": 1}}
    if "seed" in identity:
        identity |= {"seed": job.seed, "lr": job.lr, "steps": settings.get("steps")}
    if score is None:
        peak = PEAK.get(settings["init"], 1e-3)
        score = 0.6 - 0.05 * abs(math.log10((job.lr or peak) / peak)) + 0.001 * job.seed / 100
    split = settings["evaluate"]
    return RunRecord(
        run_id=run_id(identity),
        name="s",
        status=status,
        config=identity | {"task": {"name": job.task}, "model": {"name": "toy"}},
        identity=identity,
        label=job.arm,
        task={"name": job.task, "n_test": 100},
        scores={split: {"score": score, "loss": 1 - score, "n": 100}},
        provenance={"finished": finished},
    )


def play(spec, records=(), answer=record, rounds=12):
    """Run rounds until done; return their kinds with job counts, and all records by id."""
    known = {one.run_id: one for one in records}
    log = []
    for _ in range(rounds):
        this = next_round(spec, known.values())
        if this.kind == "done":
            return log, known
        log.append((this.kind, len(this.jobs)))
        known |= {one.run_id: one for one in map(answer, this.jobs)}
    raise AssertionError(log)


def test_rounds_of_a_whole_study():
    log, known = play(spec_of())
    assert log == [("cost", 2), ("tune", 2 * 6 * 2), ("final", 2 * 3 + 1)]
    finals = [one for one in known.values() if one.identity["evaluate"] == "test"]
    assert {one.identity.get("lr") for one in finals} == {1e-3, None}
    assert all("test" not in one.scores for one in known.values() if one.identity["evaluate"] != "test")


def test_killed_anywhere_it_asks_for_exactly_the_rest():
    spec = spec_of()
    _, known = play(spec)
    for seed in range(5):
        kept = random.Random(seed).sample(sorted(known), len(known) // 2)
        _, again = play(spec, [known[name] for name in kept])
        assert {name: canonical(one.identity) for name, one in again.items()} == {
            name: canonical(one.identity) for name, one in known.items()
        }


def test_the_order_of_records_does_not_matter():
    spec = spec_of()
    _, known = play(spec)
    half = list(known.values())[::2]
    assert next_round(spec, half) == next_round(spec, half[::-1])


def test_a_best_at_the_edge_extends_every_arm_alike(monkeypatch):
    monkeypatch.setitem(PEAK, "pissa", 1e-4)
    spec = spec_of(tuning={"extend": 2, "rounds": 2})
    log, known = play(spec)
    assert log == [("cost", 2), ("tune", 24), ("extend", 8), ("final", 7)]
    tried = {
        arm: {o.config["lr"] for o in known.values() if o.label == arm and o.config["steps"] == 50} for arm in PEAK
    }
    assert len(tried["lora"]) == len(tried["pissa"]) == 8 and min(tried["pissa"]) == rate(-17)
    monkeypatch.setitem(PEAK, "pissa", 1e-9)
    log, known = play(spec)
    assert [kind for kind, _ in log] == ["cost", "tune", "extend", "extend", "final"]
    notes = next_round(spec, known.values()).notes
    assert any("best lr of pissa is at the low edge" in note for note in notes)


def test_grid_is_on_one_lattice_and_centred():
    assert all(rate(k) == pytest.approx(10 ** (k / 4), rel=1e-3) for k in range(-20, 4))
    for centre in (1e-3, 5.56e-4, 3.2e-3, 0.011):
        for points in (6, 7, 12):
            ks = grid(centre, points)
            assert len(ks) == points and abs((ks[0] + ks[-1]) / 2 - 4 * math.log10(centre)) <= 0.5 + 1e-9


def test_diverged_is_the_worst_and_failed_is_asked_again():
    def answer(job):
        if job.arm == "pissa" and job.stage == "tune" and job.lr == 1e-3:
            return record(job, 0.99, "diverged")
        return record(job)

    spec = spec_of()
    _, known = play(spec, answer=answer)
    finals = [one for one in known.values() if one.label == "pissa" and one.identity["evaluate"] == "test"]
    assert {one.identity["lr"] for one in finals} == {5.623e-4} or {one.identity["lr"] for one in finals} == {1.778e-3}
    victim = finals[0]
    victim.status = "failed"
    this = next_round(spec, known.values())
    assert this.kind == "final" and [job.seed for job in this.jobs] == [victim.identity["seed"]]


def test_arms_that_ask_for_the_same_run_share_it():
    arms = ["lora", {"init": "svft", "rank": 8}, {"init": "svft", "rank": 4}, {"init": "lora", "rank": 4}]
    spec = spec_of(arms=arms, costs=None)
    log, known = play(spec, answer=record)
    assert len({one.run_id for one in known.values() if one.identity["init"]["name"] == "svft"}) == 12 + 3
    assert {one.config["init"]["rank"] for one in known.values() if one.label == "lora rank=4"} == {4}


def test_a_run_that_used_more_than_was_asked_for_answers_nothing():
    """The same run with diagnostics, made by hand under the study's name, does not replace the study's own run."""
    spec = spec_of()
    _, known = play(spec)
    final = next(one for one in known.values() if one.label == "pissa" and one.identity["evaluate"] == "test")
    measured = RunRecord(**vars(final) | {"run_id": "0", "identity": final.identity | {"diagnostics": [1, 200]}})
    assert next_round(spec, [*known.values(), measured]).kind == "done"
    rest = [one for one in known.values() if one is not final]
    assert next_round(spec, [*rest, measured]).kind == "final"


def one_of_both(given):
    """LoRA-GA's scale as a run consumes it: by zeta or by gamma, never both."""
    return {key: float(given[key]) for key in ("zeta", "gamma") if given.get(key, "null") != "null"}


@pytest.mark.parametrize(
    "knob, field",
    [
        ({"zeta": None, "gamma": 16}, lambda given: {"init": {"name": "lora_ga", "rank": 8} | one_of_both(given)}),
        ({"task.n_train": 32}, lambda given: {"task": {"name": "t", "digest": given.get("task.n_train", "all")}}),
        ({"steps": 2}, lambda given: {"steps": int(given.get("steps", 50))}),
        ({"train.clip": None}, lambda given: {"train": {"clip": None if "train.clip" in given else 1.0}}),
        ({"init.lr_prior": 20}, lambda given: {"lr": 1e-3 * float(given.get("init.lr_prior", 1))}),
    ],
)
def test_arms_that_differ_in_a_field_get_their_own_runs(tmp_path, knob, field):
    """Gamma in place of zeta, the task, the length, a null value, an untuned rate: no run answers for the other arm."""

    def consumed(words):
        return consumes(words) | {"lr": 1e-3} | field(dict(word.split("=", 1) for word in words))

    def ran(job):
        one = record(job, 0.9 if knob.keys() <= job.settings.keys() else 0.1)
        one.identity |= {
            key: value for key, value in consumed(job.overrides).items() if key not in ("evaluate", "seed")
        }
        one.identity["dtype"] = "float32"
        one.model = {"name": "toy"}
        one.run_id = run_id(one.identity)
        return one

    data = {"name": "s", "model": "toy", "tasks": ["t"], "reference": "lora", "margin": 0.02, "seeds": [0, 1, 2]}
    data |= {"tuning": "off", "costs": None, "fixed": {"zeta": 16}}
    data |= {"arms": ["lora", {"label": "other", "init": "lora", **knob}]}
    spec = bind(from_mapping(data), lr=lambda words: 1e-3, consumes=consumed)
    log, known = play(spec, answer=ran)
    assert log == [("final", 6)]
    store = Store(tmp_path)
    for one in known.values():
        store.write(one)
    study = read_study(spec, store)
    assert not study.stale and not study.unasked
    scores = {arm: {run.score("test") for run in runs.values()} for (_, arm), runs in study.finals.items()}
    assert scores == {"lora": {0.1}, "other": {0.9}}


def test_tasks_go_on_their_own_and_together():
    log, known = play(spec_of(tasks=["t", "u"]))
    assert log == [("cost", 4), ("tune", 48), ("final", 14)]


def test_other_data_makes_records_stale_not_mixed(tmp_path):
    spec = spec_of()
    _, known = play(spec)
    old = list(known.values())
    _, new = play(spec, answer=lambda job: record(job, version=2, finished="2"))
    mixed = old + list(new.values())
    this = next_round(spec, mixed)
    assert this.kind == "done" and sum(note.startswith("stale") for note in this.notes) == len(old)
    store = Store(tmp_path)
    for one in mixed:
        store.write(one)
    assert set(read_study(spec, store).stale) == {one.run_id for one in old}


def test_halving_screens_then_tunes_the_better_half():
    spec = spec_of(tuning={"halving": {"steps": 10, "keep": 0.5}})
    log, _ = play(spec)
    assert log == [("cost", 2), ("screen", 24), ("tune", 12), ("final", 7)]


def test_an_edge_is_an_end_of_what_was_screened_and_extends_the_screening(monkeypatch):
    tuning = {"halving": {"steps": 10, "keep": 0.5}}
    spec = spec_of(tuning=tuning | {"rounds": 0})
    monkeypatch.setitem(PEAK, "pissa", rate(-13))  # kept with its neighbours, of which it is then the highest or lowest
    notes = next_round(spec, play(spec)[1].values()).notes
    assert not any("edge" in note for note in notes)
    monkeypatch.setitem(PEAK, "pissa", 1e-9)
    assert any("pissa is at the low edge" in note for note in next_round(spec, play(spec)[1].values()).notes)
    spec = spec_of(tuning=tuning | {"extend": 2, "rounds": 1})
    log, known = play(spec)
    assert log == [("cost", 2), ("screen", 24), ("extend", 8), ("tune", 12), ("final", 7)]
    tuned = {one.identity["lr"] for one in known.values() if one.label == "pissa" and one.identity["steps"] == 50}
    assert min(tuned) == rate(grid(1e-3, 6)[0] - 2)


def test_without_tuning_only_final_runs():
    spec = spec_of(tuning="off", costs=None)
    log, _ = play(spec)
    assert log == [("final", 7)]
    assert all("lr=null" in job.overrides for job in next_round(spec, []).jobs)
    given = spec_of(tuning="off", costs=None, arms=["lora", {"init": "pissa", "lr": 2e-4}])
    assert {job.lr for job in next_round(given, []).jobs} == {None, 2e-4}


def test_runners_up_run_as_extra_arms(tmp_path):
    spec = spec_of(tuning={"runners_up": 1})
    log, known = play(spec, answer=lambda job: record(job, 0.5 + 0.1 * (job.seed == 101)))
    assert log[-1] == ("final", 2 * 2 * 3 + 1)
    store = Store(tmp_path)
    for one in known.values():
        store.write(one)
    study = read_study(spec, store)
    assert study.complete and len(study.runners_up) == 2 and study.result.design.n_seeds == 3


def test_a_study_read_back_has_verdicts_and_choices(tmp_path):
    spec, store = spec_of(margin=0.1, seeds=[0, 1, 2, 3, 4]), Store(tmp_path)
    _, known = play(spec)
    for one in known.values():
        store.write(one, [{"split": "test", "id": str(i), "score": float(i < 60)} for i in range(100)])
    study = read_study(spec, store)
    assert study.complete and not study.unasked and len(study.trials) == 24 and len(study.costs) == 2
    assert study.choices["t", "pissa"].lr == 1e-3 and study.choices["t", "pissa"].trials == 12
    assert study.result.comparison("t", "pissa").verdict == "equivalent"
    assert list(study.finals["t", "none"]) == [None]


def test_overrides_are_hydras():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    arms = ["lora", {"label": "it's a=b, c", "init": "svft", "init.pattern": "banded", "targets": ["q", "v"]}]
    job = next_round(spec_of(arms=arms), []).jobs[1]
    parsed = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(job.overrides)}
    assert parsed["label"] == "it's a=b, c" and parsed["targets"] == ["q", "v"] and parsed["base"] is False


def test_a_study_is_read_by_one_search(tmp_path, monkeypatch):
    """Every job is looked up once, however often the tuning was extended."""
    monkeypatch.setitem(PEAK, "pissa", 1e-9)
    spec, store = spec_of(tuning={"extend": 2, "rounds": 2, "runners_up": 1}), Store(tmp_path)
    for one in play(spec)[1].values():
        store.write(one)
    asked, find = [], JobIndex.find
    monkeypatch.setattr(JobIndex, "find", lambda self, job: asked.append(tuple(job.overrides)) or find(self, job))
    assert read_study(spec, store).complete
    assert len(asked) == len(set(asked)) > 0
