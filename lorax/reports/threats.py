"""Threats to validity, read from the records: what a sceptical reader would ask."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TypeVar

from lorax.records import RunRecord, canonical
from lorax.records.fields import moved_at_start, shots, trained_on_rewards
from lorax.records.staleness import several_digests
from lorax.reports.frames.asymmetries import Asymmetry
from lorax.reports.frames.study import final_runs, test_scored
from lorax.reports.sweep import left_out
from lorax.reports.text import numbers
from lorax.studies.jobs import consumed
from lorax.studies.plan import FEW_SEEDS
from lorax.studies.study import Study

_FEW_TEST, _FEW_VALIDATION, _FEW_SEEDS = 1000, 300, 5
T = TypeVar("T")


def threats(study: Study, asymmetries: list[Asymmetry]) -> list[str]:
    """Return one line for each threat that the records show, the graver ones first.

    Args:
        study: from `studies.study.read_study`.
        asymmetries: from `frames.study.asymmetries`.
    """
    finals = final_runs(study)
    lines = _incomplete(study) + left_out(study.damaged)
    if asymmetries:
        lines.append(
            f"Rows differ in more than the method: {'; '.join(item.field for item in asymmetries)} (listed above)."
        )
    if study.spec.tuning is None:
        lines.append(
            "Nothing was tuned: every row is about its one rate, at another the rows may order otherwise; and a field "
            "that scales the update (alpha, zeta, rank through alpha / rank) is here a step size as well."
        )
    lines += _size(study)
    lines += _floor_and_ceiling(study)
    lines += _format(study)
    lines += _provenance(test_scored(study) + [trial.record for trial in study.trials])
    lines += _scope(study, finals)
    if study.stale:
        shown = ", ".join(f"{run} ({why})" for run, why in sorted(study.stale.items())[:5])
        lines.append(f"{len(study.stale)} stale records are left out: {shown}{' ...' if len(study.stale) > 5 else ''}.")
    if study.unasked:
        names = ", ".join(record.run_id for record in study.unasked[:5])
        names += f" and {len(study.unasked) - 5} more" if len(study.unasked) > 5 else ""
        lines.append(
            f"{len(study.unasked)} records of this name belong to no job of the study and are left out: {names}."
        )
    return lines


def _incomplete(study: Study) -> list[str]:
    if study.complete:
        return []
    missing = study.remaining
    return [f"The study is not complete: {len(missing.jobs)} runs of the {missing.kind} round are missing."]


def _size(study: Study) -> list[str]:
    lines = []
    seeds = len(study.spec.seeds)
    if seeds < _FEW_SEEDS:
        lines.append(f"{seeds} final seeds: the spread between seeds is itself poorly known.")
    elif study.spec.estimand == "method" and seeds < FEW_SEEDS:
        lines.append(f"{seeds} final seeds, fewer than {FEW_SEEDS}: few for intervals that cover every rate of an arm.")
    for task in study.spec.tasks:
        n = min((int(record.score("test", "n") or 0) for record in final_runs(study, task)), default=0)
        if 0 < n < _FEW_TEST:
            lines.append(f"{task}: {n} test items, fewer than {_FEW_TEST:,}.")
        checks = [int(trial.record.score("validation", "n") or 0) for trial in study.trials if trial.task == task]
        n = min(checks, default=0)
        if 0 < n < _FEW_VALIDATION:
            lines.append(f"{task}: {n} validation items choose the learning rate, fewer than {_FEW_VALIDATION}.")
    return lines


def _floor_and_ceiling(study: Study) -> list[str]:
    """Say where scores are near the floor, the ceiling, the majority class or the base: differences shrink there."""
    if study.result is None:
        return []
    lines = []
    for task in study.result.tasks:
        arms = [row for row in study.result.arms if row.task == task]
        rows = [row for row in arms if study.spec.arm(row.arm).trained]
        best = max((row.mean for row in rows), default=0.5)
        if best > 0.97:
            lines.append(f"{task}: the best mean is {numbers.points(best)} %: near the ceiling arms look alike.")
        if best < 0.03:
            lines.append(f"{task}: the best mean is {numbers.points(best)} %: near the floor arms look alike.")
        majority = next((m for record in final_runs(study, task) if (m := record.task.get("majority"))), None)
        floor = next((f for record in final_runs(study, task) if (f := record.task.get("floor_is"))), None)
        floor = "the majority class's share" if floor is None else f"the score of {floor}"
        for word, low in () if majority is None else (
            ("is below", [row.arm for row in rows if row.mean < majority - 0.01]),
            ("is at", [row.arm for row in rows if abs(row.mean - majority) <= 0.01]),
        ):  # fmt: skip
            if low:
                lines.append(f"{task}: {', '.join(low)} {word} {floor} ({numbers.points(majority)} %).")
        base = next((row.mean for row in arms if not study.spec.arm(row.arm).trained), None)
        idle = [row.arm for row in rows if base is not None and row.mean <= base]
        if idle:
            lines.append(f"{task}: {', '.join(idle)} does not exceed the frozen base ({numbers.points(base)} %).")
        diverged = [f"{row.arm} ({row.diverged} of {row.n_seeds})" for row in rows if row.diverged]
        if diverged:
            lines.append(f"{task}: diverged final runs count with their score: {', '.join(diverged)}.")
    return lines


def _format(study: Study) -> list[str]:
    """Say where prompts differ between arms, and where strict and tolerant scores differ: format is learnt there."""
    lines = []
    for (task, arm), runs in study.finals.items():
        examples = max(map(shots, runs.values()), default=0)
        if examples:
            lines.append(f"{task}: {arm} has {examples} worked examples in its prompt, trained arms none.")
        gaps = [
            tolerant - strict
            for record in runs.values()
            if (tolerant := record.score("test", "tolerant")) is not None
            and (strict := record.score("test")) is not None
        ]
        if gaps and max(gaps) > 0.05:
            mean = numbers.points(sum(gaps) / len(gaps))
            lines.append(f"{task}: {arm} scores {mean} points higher when format is forgiven.")
    return lines


def _provenance(records: list[RunRecord]) -> list[str]:
    lines = []
    commits = _distinct(record.provenance.get("commit") for record in records)
    if len(commits) > 1:
        lines.append(f"Runs come from {len(commits)} commits of the code: {', '.join(str(c)[:9] for c in commits)}.")
    if any(record.provenance.get("dirty") for record in records):
        lines.append("Some runs were made with uncommitted changes in the code.")
    devices = _distinct(_device(record) for record in records)
    if len(devices) > 1:
        lines.append(f"Runs were made on different devices: {', '.join(map(str, devices))}.")
    versions: dict[str, list[str]] = {}
    for record in records:
        for package, version in (record.provenance.get("versions") or {}).items():
            if version is not None and version not in versions.setdefault(package, []):
                versions[package].append(version)
    mixed = [f"{package} {' and '.join(map(str, seen))}" for package, seen in versions.items() if len(seen) > 1]
    if mixed:
        lines.append(f"Package versions differ between runs: {'; '.join(mixed)}.")
    return lines


def _scope(study: Study, finals: list[RunRecord]) -> list[str]:
    model = next((record.model for record in finals), {})
    size = f" ({model['parameters'] / 1e6:,.3g} M parameters)" if model.get("parameters") else ""
    several = several_digests(finals)
    lines = [
        f"{name}: arms differ in the {place} itself (listed above): their differences are not the method's alone"
        + (", and where test items differ, runs are paired by seed only." if place == "task" else ".")
        for place, name in sorted(several)
    ]
    if (moved := moved_at_start(finals)) is not None:
        lines.append(moved)
    if (rewarded := trained_on_rewards(finals)) is not None:
        lines.append(rewarded)
    models = "One model" if "model" not in {place for place, _ in several} else "Models of one name"
    tasks = "one task" if len(study.spec.tasks) == 1 else f"{len(study.spec.tasks)} tasks"
    lines.append(
        f"{models}, {study.spec.model}{size}, and {tasks}, {', '.join(study.spec.tasks)}: nothing here speaks about "
        "others."
    )
    lines += _twins(study)
    splits = _distinct(record.config.get("data_seed") for record in finals)
    if splits and "task" not in {place for place, _ in several}:
        lines.append(
            f"One fixed split a task (data_seed {', '.join(map(str, splits))}): the estimand is the expected score "
            + ("over seeds on this test set." if study.spec.procedure == "paired_t" else "over seeds and like items.")
        )
    steps = _distinct(record.config.get("steps") for record in finals if record.costs.get("trainable"))
    if steps:
        lines.append(f"Training lasts {' or '.join(map(str, steps))} steps; longer training may order arms otherwise.")
    return lines


def _twins(study: Study) -> list[str]:
    """Name the arms that mean one run, such as SVFT at two ranks."""
    by_fields: dict[str, dict[str, None]] = {}
    for task, arm in itertools.product(study.spec.tasks, study.spec.arms):
        fields = study.spec.consumes.get(consumed(arm.label, task))
        if fields is not None and arm.lr is None:
            by_fields.setdefault(f"{task} {canonical(fields)}", {})[arm.label] = None
    groups = dict.fromkeys(tuple(arms) for arms in by_fields.values() if len(arms) > 1)
    return [f"{' and '.join(arms)} are one run under several names: nothing that it uses differs." for arms in groups]


def _device(record: RunRecord) -> str | None:
    device = record.provenance.get("device")
    return device.get("name", str(device)) if isinstance(device, dict) else device


def _distinct(values: Iterable[T | None]) -> list[T]:
    return list(dict.fromkeys(value for value in values if value is not None))
