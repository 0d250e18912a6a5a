"""Before a study runs: bind it to methods and model, compute what it costs and what it can show."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorax.errors import UserError
from lorax.records import canonical
from lorax.stats import power
from lorax.stats.anytime_design import anytime_design
from lorax.stats.estimands import ESTIMANDS, SPREAD
from lorax.stats.rule import CLAIMS
from lorax.stats.sequential import earliest
from lorax.studies.equal_parameters import nearest
from lorax.studies.jobs import Job, consumed, make_job
from lorax.studies.spec import WHEN_ABSENT, Arm, StudySpec
from lorax.studies.variations import VARIED_SEEDS, variations
from lorax.studies.windows import FIRST, fewest_rates

LEAST_TEST, LEAST_VALIDATION, FEW_SEEDS = 1000, 300, 8
WIDER = 1.15
"""By how much the interval between methods is wider than at one rate each, with curves that lose one to two spreads a
step beside their peak (`lorax.calibration` measures it); a plan does not know the curves."""


def bind(
    spec: StudySpec,
    *,
    lr: Callable[[list[str]], float],
    count: Callable[[list[str]], int] | None = None,
    consumes: Callable[[list[str]], Mapping[str, Any]] | None = None,
) -> StudySpec:
    """Fill in what only the configuration of methods, tasks and model knows.

    Args:
        spec: the study as read.
        lr: overrides of a job -> the learning rate that `lr=null` means (base times prior).
        count: overrides -> trainable parameters by closed formula; needed where an arm has `match`.
        consumes: overrides -> the fields that such a run consumes; None: records are recognised by label.

    Returns:
        The spec with centres, matched fields and consumed fields.

    Raises:
        UserError: an arm has `match` and there is no `count`, a method refuses its fields, or `trained` is
            not what the method does.
    """
    if spec.sensitivity and consumes is None:
        raise UserError(
            f"study {spec.name}: sensitivity needs to know what a run consumes: labels alone tell no values apart"
        )
    spec = replace(spec, matched=_matched(spec, count))
    centres: dict[str, float] = {}
    fields: dict[str, dict[str, Any]] = {}
    for task in spec.tasks:
        for arm in spec.arms:
            overrides = make_job(spec, arm.label, task, "tune", None, 0).overrides
            if arm.trained:
                centres[f"{task}/{arm.label}"] = float(f"{lr(overrides):.6g}")
            if consumes is not None:
                used = fields[consumed(arm.label, task)] = dict(consumes(overrides))
                _check_trained(spec, arm, "lr" in used)
                for vary in variations(spec, arm.label):
                    varied = make_job(spec, arm.label, task, "vary", None, 0, vary).overrides
                    fields[consumed(arm.label, task, vary)] = dict(consumes(varied))
    return replace(spec, centres=centres, consumes=json.loads(canonical(fields)))


def _check_trained(spec: StudySpec, arm: Arm, trains: bool) -> None:
    """Refuse an arm that trains and would be run once, or one that trains nothing and would be tuned."""
    if arm.trained and not trains:
        raise UserError(f"study {spec.name}: arm {arm.label!r}: init={arm.init} trains nothing; add trained: false")
    if trains and not arm.trained:
        raise UserError(f"study {spec.name}: arm {arm.label!r}: trained: false, but init={arm.init} trains")


def _matched(spec: StudySpec, count: Callable[[list[str]], int] | None) -> dict[str, dict[str, Any]]:
    """Return, for each arm with `match`, the value of its field at which it has the other arm's parameters."""
    matched: dict[str, dict[str, Any]] = {}
    for arm in spec.arms:
        rule = arm.match
        if rule is None:
            continue
        if count is None:
            raise UserError(f"study {spec.name}: arm {arm.label!r} is to be matched, but nothing counts parameters")
        job = make_job(spec, arm.label, spec.tasks[0], "tune", None, 0)
        other = make_job(spec, rule.to, spec.tasks[0], "tune", None, 0)

        def at(value: int, job: Job = job, key: str = rule.key, count: Callable[[list[str]], int] = count) -> int:
            return count(replace(job, settings=job.settings | {key: value}).overrides)

        matched[arm.label] = {rule.key: nearest(at, count(other.overrides), rule.low, rule.high)}
    return matched


@dataclass(frozen=True)
class Plan:
    """What a study would run and could show."""

    jobs: dict[str, int]
    """Stage -> number of runs; of `extend` and `widen` the largest number possible."""
    seconds: float | None
    """Of all runs one after another, without extensions and wider windows; None: not known."""
    design: power.Design
    lines: tuple[str, ...]
    """The plan in words."""


def plan(spec: StudySpec, seconds: float | Mapping[str, float] | None = None) -> Plan:
    """Compute what a study costs and what it can show, and run nothing.

    Args:
        spec: the study; bound or not.
        seconds: of one full-length job, for all jobs or by `task/label`; None: no estimate.
    """
    trained, tasks = [arm for arm in spec.arms if arm.trained], len(spec.tasks)
    jobs = {"cost": len(trained) * tasks if spec.costs else 0, "screen": 0, "tune": 0, "extend": 0}
    if spec.tuning is not None:
        per_point, halving = len(trained) * tasks * len(spec.tuning.seeds), spec.tuning.halving
        jobs["screen"] = per_point * spec.tuning.points if halving else 0
        jobs["tune"] = per_point * (halving.survivors(spec.tuning.points) if halving else spec.tuning.points)
        jobs["extend"] = per_point * spec.tuning.extend * spec.tuning.rounds
    of_rate = tasks * len(trained) * len(spec.seeds)
    jobs["final"] = of_rate * _rates(spec) + tasks * (len(spec.arms) - len(trained))
    if spec.tuning and spec.estimand == "method":
        jobs["widen"] = of_rate * spec.tuning.rounds
    if spec.sensitivity:
        values = sum(len(variations(spec, arm.label)) for arm in trained)
        jobs["vary"] = tasks * values * len(spec.seeds[:VARIED_SEEDS])
    design = _design(spec)
    total = _seconds(spec, seconds)
    upper = ("extend", "widen", "vary", *(["final"] if spec.until_decided else []))
    lines = [
        f"study {spec.name}: {len(spec.arms)} arms x {tasks} task(s), reference {spec.reference}",
        f"  estimand {spec.estimand}: {ESTIMANDS[spec.estimand]}",
    ]
    if spec.claim != WHEN_ABSENT["claim"]:
        lines.append(f"  claim {spec.claim}: {CLAIMS[spec.claim]}")
    lines += [f"  {stage}: {n} runs" + (" at most" if stage in upper else "") for stage, n in jobs.items() if n]
    if spec.until_decided:
        least, every = _until(spec, design), spec.tuning is not None and spec.estimand == "method"
        lines.append(
            f"  an upper bound: final runs{' and widen' * every} are those of {len(spec.seeds)} seeds for every arm; "
            f"an arm stops when it is decided, and {least} final runs are the fewest that can decide all"
        )
    if total is not None:
        conditions = "one run after another, extensions not counted; packed runs share much of it"
        lines.append(f"  {'at most ' if spec.until_decided else ''}about {_clock(total)} {conditions}")
    lines += [
        f"  {label}: {key}={value} (equal parameters)"
        for label, settings in spec.matched.items()
        for key, value in settings.items()
    ]
    lines += [f"  {sentence}" for sentence in design.sentences(SPREAD[spec.estimand])]
    lines += [f"  {warning}" for warning in _warnings(spec)]
    return Plan(jobs, total, design, tuple(lines))


def _seconds(spec: StudySpec, seconds: float | Mapping[str, float] | None) -> float | None:
    if seconds is None:
        return None
    total = 0.0
    tuning = _tuning_runs(spec)
    for task in spec.tasks:
        for arm in spec.arms:
            run_seconds = seconds if isinstance(seconds, int | float) else seconds.get(f"{task}/{arm.label}")
            if run_seconds is None and not arm.trained:
                continue  # a frozen base is only scored
            if run_seconds is None:
                return None
            total += run_seconds * (tuning + len(spec.seeds) * _rates(spec) if arm.trained else 1)
    return total


def _design(spec: StudySpec) -> power.Design:
    sd = spec.assumed_sd * (WIDER if spec.estimand == "method" else 1.0)
    if spec.until_decided:
        return anytime_design(
            family=spec.family, most=len(spec.seeds), n_items=spec.test_items, sd=sd, margin=spec.margin,
            alpha=spec.alpha, rates=_rates(spec), fewest=fewest_rates(spec),
        )  # fmt: skip
    return power.design(
        family=spec.family, n_seeds=len(spec.seeds), n_items=spec.test_items, sd=sd, margin=spec.margin,
        alpha=spec.alpha, claim=spec.claim,
    )  # fmt: skip


def _until(spec: StudySpec, design: power.Design) -> int:
    """Return the final runs if every arm is decided as soon as that is possible."""
    trained = sum(arm.trained for arm in spec.arms)
    seeds = min(earliest(spec.alpha, design.family, fewest_rates(spec)), len(spec.seeds))
    return len(spec.tasks) * (trained * seeds * _rates(spec) + len(spec.arms) - trained)


def _rates(spec: StudySpec) -> int:
    """Return the rates that each final seed of an arm runs."""
    return FIRST if spec.estimand == "method" else 1


def _tuning_runs(spec: StudySpec) -> float:
    """Return the tuning runs of one arm; a screening run counts by its share of the steps."""
    if spec.tuning is None:
        return 0.0
    points: float = spec.tuning.points
    halving = spec.tuning.halving
    steps = spec.fixed.get("steps")
    if halving:
        points = points * (halving.steps / steps if steps else 1.0) + halving.survivors(spec.tuning.points)
    return len(spec.tuning.seeds) * points


def _warnings(spec: StudySpec) -> list[str]:
    lines = []
    if spec.tuning is None:
        lines.append(
            "No tuning: every arm runs at one rate, its own or base rate times prior. This is not a tuned comparison."
        )
    if spec.estimand == "method" and len(spec.seeds) < FEW_SEEDS:
        lines.append(
            f"{len(spec.seeds)} seeds are few for estimand method, whose interval covers every rate of the windows: "
            f"{FEW_SEEDS} to 12 are advised."
        )
    if spec.test_items < LEAST_TEST:
        lines.append(f"{spec.test_items} test items; {LEAST_TEST} or more are advised.")
    if spec.tuning and spec.validation_items < LEAST_VALIDATION:
        lines.append(f"{spec.validation_items} validation items; {LEAST_VALIDATION} or more are advised.")
    return lines


def _clock(seconds: float) -> str:
    hours, remainder = divmod(int(seconds), 3600)
    minutes, full_seconds = divmod(remainder, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {full_seconds:02d} s"
