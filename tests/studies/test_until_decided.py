"""Seeds until decided: which runs are asked for after each look, that kills change nothing, what is refused."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_study import ARMS as MADE
from made_study import made_record

from lorax.errors import UserError
from lorax.records import RunRecord, Store, canonical, run_id
from lorax.reports.figures.courses import courses
from lorax.reports.frames.items import descriptions, item_scores
from lorax.reports.main_table import main_table
from lorax.reports.rescore import verdict_changes
from lorax.reports.study import document
from lorax.reports.text.markdown import render
from lorax.stats.sequential import earliest
from lorax.studies.parse import from_mapping
from lorax.studies.plan import bind, plan
from lorax.studies.registration import digest, freeze, frozen
from lorax.studies.rounds import next_round
from lorax.studies.spec import UntilDecided
from lorax.studies.study import read_study
from lorax.studies.tuning import rate

ARMS = ["lora", "pissa", "svft", {"init": "none", "trained": False}]
PEAK = {"lora": -12, "pissa": -12, "svft": -13}
GAIN = {"lora": 0.0, "pissa": 0.05, "svft": 0.0, "none": -0.3}


def spec_of(most=12, tuned=True, **changes):
    data = {
        "name": "s", "model": "toy", "tasks": ["t"], "reference": "lora", "margin": 0.02, "arms": ARMS, "costs": None,
        "seeds": {"until_decided": {"max": most}}, "fixed": {"steps": 50},
    }  # fmt: skip
    data |= {} if tuned else {"tuning": "off"}
    return bind(from_mapping(data | changes), lr=lambda words: 1e-3)


def answer(job, finals_peak=None, spread=0.01):
    """A run that loses 5 points for the first lattice step from its arm's peak, and 20 for the second."""
    k = None if job.lr is None else round(4 * math.log10(job.lr))
    peak = (finals_peak or PEAK).get(job.arm, -12) if job.stage == "final" else PEAK.get(job.arm, -12)
    arm = list(GAIN).index(job.arm)
    noise = np.random.default_rng([job.seed, abs(k or 0), arm, len(job.task)]).normal(0, spread, 2)
    score = 0.6 + GAIN[job.arm] - (0.0 if k is None else 0.05 * (k - peak) ** 2)
    splits = ["validation", "test"] if job.settings["evaluate"] == "both" else [job.settings["evaluate"]]
    identity = {"init": job.settings["init"], "lr": job.lr, "seed": job.seed, "evaluate": job.settings["evaluate"]}
    identity |= {"task": job.task}
    scores = {s: {"score": score + float(noise[at]), "loss": 1 - score, "n": 1000} for at, s in enumerate(splits)}
    task = {"name": job.task, "n_test": 1000}
    return RunRecord(
        run_id=run_id(identity), name="s", status="finished", config=identity | {"task": task}, identity=identity,
        label=job.arm, task=task, scores=scores, provenance={"finished": "1"},
    )  # fmt: skip


def play(spec, records=(), **how):
    known = {record.run_id: record for record in records}
    log = []
    for _ in range(60):
        this = next_round(spec, known.values())
        if this.kind == "done":
            return log, known
        log.append((this.kind, dict(Counter(job.arm for job in this.jobs))))
        known |= {record.run_id: record for record in (answer(job, **how) for job in this.jobs)}
    raise AssertionError(log)


def stored(spec, known, folder):
    store = Store(folder)
    for record in known.values():
        store.write(record)
    return read_study(spec, store)


def test_a_seed_at_a_time_until_an_arm_is_decided_and_the_reference_runs_every_one(tmp_path):
    spec = spec_of()
    log, known = play(spec)
    assert log[:2] == [("tune", {"lora": 12, "pissa": 12, "svft": 12}),
                       ("final", {"lora": 9, "pissa": 9, "svft": 9, "none": 1})]  # fmt: skip
    study = stored(spec, known, tmp_path)
    after = {c.arm: c.decided_after for c in study.result.comparisons}
    assert 4 <= after["pissa"] < 12 and after["none"] is not None and after["svft"] is None
    asked = Counter()
    for kind, jobs in log[2:]:
        assert (
            kind == "final" and set(jobs.values()) == {3} and {"lora", "svft"} <= set(jobs) <= {"lora", "svft", "pissa"}
        )
        asked.update(jobs)
    assert asked == {"lora": 27, "svft": 27, "pissa": 3 * (after["pissa"] - 3)}, "3 rates, seed by seed to 12"
    assert study.complete and not study.unasked
    verdicts = {c.arm: c.verdict for c in study.result.comparisons}
    assert verdicts == {"pissa": "better", "svft": "undecided", "none": "worse"}
    assert len(study.finals["t", "lora"]) == 12 and len(study.finals["t", "pissa"]) == after["pissa"]
    pissa = study.result.comparison("t", "pissa")
    assert pissa.low > 0 and pissa.p_adjusted <= 0.05 and pissa.mde == math.inf and math.isnan(pissa.p_flip)
    assert not study.result.pairs and not any(row.letters for row in study.result.arms)
    assert study.remaining.notes[-1] == "2 of 3 comparisons decided after 12 seeds"


def test_it_ends_when_all_are_decided(tmp_path):
    spec = spec_of(arms=["lora", "pissa"])
    log, known = play(spec)
    study = stored(spec, known, tmp_path)
    (c,) = study.result.comparisons
    assert study.complete and c.decided_after == len(c.seeds) < 12 == len(spec.seeds)


def test_killed_anywhere_it_asks_for_exactly_the_rest_and_decides_the_same(tmp_path):
    spec = spec_of(tuning={"rounds": 2}, most=8)
    how = {"finals_peak": {"lora": -12, "pissa": -11, "svft": -13}, "spread": 0.03}
    log, known = play(spec, **how)
    whole = stored(spec, known, tmp_path / "whole")
    assert len(whole.choices["t", "pissa"].window) == 4, "its pilot was a step too low"
    for seed in range(3):
        kept = random.Random(seed).sample(sorted(known), len(known) // 2)
        _, again = play(spec, records=[known[name] for name in kept], **how)
        assert {n: canonical(r.identity) for n, r in again.items()} == {
            n: canonical(r.identity) for n, r in known.items()
        }
    part = stored(spec, {n: r for n, r in known.items() if r.config["seed"] != 5}, tmp_path / "part")
    for c in part.result.comparisons:
        course, of_whole = part.result.courses[c.task, c.arm], whole.result.courses[c.task, c.arm]
        assert [seen.better for seen in course.looks] == [seen.better for seen in of_whole.looks][: len(course.looks)]
        assert not course.sign or course.sign == of_whole.sign
    assert part.remaining.kind == "final" and {job.seed for job in part.remaining.jobs} == {5}


def test_a_window_that_grows_is_run_on_every_seed_so_far_before_the_look():
    spec = spec_of(arms=["lora", "pissa"], tuning={"rounds": 1})
    log, known = play(spec, finals_peak={"lora": -12, "pissa": -11})
    assert log[1:3] == [("final", {"lora": 9, "pissa": 9}), ("final", {"pissa": 3})]
    assert log[3] == ("final", {"lora": 3, "pissa": 4})
    finals = {r.config["lr"] for r in known.values() if r.label == "pissa" and "test" in r.scores}
    assert finals == {rate(k) for k in (-13, -12, -11, -10)}


def test_an_arm_at_the_edge_is_never_worse_and_the_reference_at_the_edge_is_never_beaten(tmp_path):
    spec = spec_of(arms=["lora", "svft"], tuning={"rounds": 0}, most=8)
    for at, (arm, peak) in enumerate((("svft", -10), ("lora", -10))):
        gains = {"svft": -0.2} if arm == "svft" else {"svft": 0.2}
        GAIN.update(gains)
        try:
            log, known = play(spec, finals_peak=PEAK | {arm: peak})
        finally:
            GAIN["svft"] = 0.0
        c = stored(spec, known, tmp_path / str(at)).result.comparison("t", "svft")
        assert c.verdict == "undecided" and abs(c.estimate) > 0.05 and len(c.seeds) == 8
        assert (c.high if arm == "svft" else c.low) == (math.inf if arm == "svft" else -math.inf)
        assert "at the edge of what was run" in c.note


@pytest.mark.parametrize("changes", [{}, {"tuned": False}], ids=["tuned", "as given"])
def test_at_selected_rates_it_is_the_same_with_one_rate_an_arm(tmp_path, changes):
    spec = spec_of(estimand="rate", **changes)
    log, known = play(spec)
    assert log[-1][1] == {"lora": 1, "svft": 1} and ("final", {"lora": 3, "pissa": 3, "svft": 3, "none": 1}) in log
    study = stored(spec, known, tmp_path)
    assert study.complete and not study.windows and study.result.comparison("t", "pissa").verdict == "better"


def test_a_look_is_about_all_tasks_together():
    """None begins before every task is tuned; a decision on one task lowers what the other needs (Holm)."""
    spec = spec_of(tasks=["t", "other"], arms=["lora", "pissa"])
    records = [answer(job) for job in next_round(spec, []).jobs]
    half = [record for record in records if record.task["name"] == "t"]
    assert {job.task for job in next_round(spec, half).jobs} == {"other"}
    final = next_round(spec, records)
    assert final.kind == "final" and {job.task for job in final.jobs} == {"t", "other"}


def test_a_task_that_is_decided_stops_and_a_frozen_reference_is_scored_once(tmp_path):
    spec = spec_of(tasks=["t", "other"], arms=["lora", "pissa"], most=9)
    assert PEAK["pissa"] == -12
    log, known = play(spec, spread=0.004)
    study = stored(spec, known, tmp_path / "two")
    assert study.complete and {c.decided_after for c in study.result.comparisons} <= set(range(4, 9))
    frozen_base = spec_of(reference="none", arms=["lora", {"init": "none", "trained": False}])
    log, known = play(frozen_base)
    assert log[1] == ("final", {"lora": 9, "none": 1})
    (c,) = stored(frozen_base, known, tmp_path / "base").result.comparisons
    assert (c.verdict, c.reference) == ("better", "none") and c.decided_after == len(c.seeds)


def test_a_failed_run_is_waited_for_and_a_diverged_one_counts():
    spec = spec_of(arms=["lora", "pissa"])
    tuned = [answer(job) for job in next_round(spec, []).jobs]
    first = [answer(job) for job in next_round(spec, tuned).jobs]
    first[0].status = "failed"
    this = next_round(spec, [*tuned, *first])
    assert this.kind == "final" and len(this.jobs) == 1
    first[0].status, first[0].scores = "diverged", {}
    assert {job.seed for job in next_round(spec, [*tuned, *first]).jobs} == {3}


def test_the_plan_shows_the_most_and_says_so():
    spec = spec_of(most=30)
    planned = plan(spec, seconds=10.0)
    assert planned.jobs["final"] == 3 * 30 * 3 + 1 and planned.seconds == 10 * (36 + 271)
    text = "\n".join(planned.lines)
    assert "final: 271 runs at most" in text and "an upper bound" in text and "at most about" in text
    first = earliest(0.05, 3)
    assert (
        f"{3 * first * 3 + 1} final runs are the fewest" in text
        and f"No verdict is possible before {first} seeds" in text
    )
    assert "a look after every seed from 3 to 30" in text and "Equivalence is not judged" in text
    assert "a new study" not in text


def test_both_ways_to_write_it_and_what_is_stored(tmp_path):
    assert spec_of(seeds="until_decided").until_decided == UntilDecided(30)
    for given in ({"until_decided": None}, {"until_decided": {}}, {"until_decided": {"max": 30}}):
        spec = spec_of(seeds=given)
        assert spec.seeds == tuple(range(30)) and digest(spec) == digest(spec_of(seeds="until_decided"))
    assert spec.plain()["seeds"] == {"until_decided": {"max": 30}} and "until_decided" not in spec.plain()
    freeze(spec, tmp_path)
    assert frozen(tmp_path, "s") == spec
    with pytest.raises(UserError, match="seeds was fixed as .*max.*30.* and is now"):
        freeze(spec_of(most=20), tmp_path)
    fixed = spec_of(seeds=list(range(30)))
    assert digest(fixed) != digest(spec) and "until_decided" not in canonical(fixed.design())


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"seeds": "until decided"}, r"study\.seeds=until decided: a list of whole numbers from 0, or until_decided"),
        ({"seeds": {"until": {"max": 9}}}, r"a list, until_decided, or \{until_decided: \{max: 30\}\} is needed"),
        ({"seeds": {"until_decided": {"max": 9}, "max": 9}}, "a list, until_decided"),
        ({"seeds": {"until_decided": 30}}, r"seeds\.until_decided=30: a mapping is needed"),
        ({"seeds": {"until_decided": {"most": 30}}}, "no key 'most'"),
        ({"most": 2.5}, "max=2.5: a whole number is needed"),
        ({"most": True}, "max=True: a whole number is needed"),
        ({"most": 3}, "max=3: from 5 to 1000; with 3 comparisons at 5 % no verdict is possible before 5 seeds"),
        ({"most": 10**9}, "max=1000000000: from 5 to 1000"),
        ({"most": 1001}, "max=1001: from 5 to 1000"),
        ({"procedure": "crossed"}, "procedure=crossed needs a fixed number of seeds"),
        ({"estimand": "rate", "tuning": {"runners_up": 1}}, "runners_up=1 needs a fixed number of seeds"),
        ({"most": 110}, "101 is a final seed too"),
        ({"until_decided": {"max": 9}}, "no key 'until_decided'"),
        ({"arms": ["lora"]}, "there is no arm but the reference, and so nothing to decide"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(changes, line):
    with pytest.raises(UserError, match=line) as refused:
        spec_of(**changes)
    assert "\n" not in str(refused.value) and len(str(refused.value)) <= 300


def test_the_report_says_after_how_many_seeds_and_advises_no_more_of_them(tmp_path, make_study):
    store = Store(tmp_path)
    spec = make_study(store, [*MADE[:3], MADE[-1]], seeds={"until_decided": {"max": 8}}, costs=None)
    study = read_study(spec, store)
    text = render(document(study, descriptions(study, item_scores(study, store))))
    assert "made for a fixed number of seeds: an arm that stopped when it was decided looks further" in text
    assert "decided after" in text and "No verdict is possible before" in text and "at all looks together" in text
    assert not [words for words in ("a new study", "share a letter", "Holm", "sign-flip") if words in text]
    assert "rslora against lora is undecided after 8 of at most 8 seeds" in text and "Equivalence is not judged" in text
    table = main_table(study).set_index("arm")
    after = table.loc["pissa", "decided_after"]
    assert after == table.loc["pissa", "seeds"] < table.loc["lora", "seeds"] == 8 and table["p_flip"].isna().all()
    row = next(line for line in text.splitlines() if line.startswith("| pissa"))
    assert re.search(rf"\| better by at least \d\.\d \| {int(after)} \|", " ".join(row.split())) and np.isnan(
        table.loc["rslora", "decided_after"]
    )
    (panel,) = courses(study.result, list(spec.labels)).axes
    dots = [line for line in panel.lines if line.get_marker() not in ("None", "")]
    ends = [dot.get_xdata()[-1] for dot in dots]
    assert sorted(ends) == sorted(c.decided_after for c in study.result.comparisons if c.decided_after)
    assert verdict_changes(study, pd.DataFrame()) == [
        "No verdict was judged again: the study's own score decided how many seeds each arm ran."
    ]
    fixed = replace(study.result, courses=None)
    assert courses(fixed) is None


def test_an_unfinished_study_says_how_far_it_is(tmp_path, make_study):
    store = Store(tmp_path)
    spec = make_study(store, MADE[:2], seeds={"until_decided": {"max": 8}}, costs=None, stop="final")
    study = read_study(spec, store)
    assert study.result is None and "runs of the final round are missing" in render(document(study, pd.DataFrame()))
    records = store.read("demo")
    for _ in range(3):
        for job in next_round(spec, records).jobs:
            record, rows = made_record(job)
            store.write(record, rows)
            records.append(record)
    text = render(document(read_study(spec, store), pd.DataFrame()))
    assert "undecided after 5 of at most 8 seeds" in text
