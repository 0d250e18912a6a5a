"""Every run counted: those that a row uses, those that none does, those that the design names and nobody has."""

from __future__ import annotations

from collections import defaultdict

from lorax.records import RunRecord
from lorax.reports.audit.case import Case, counted, listed
from lorax.studies.study import Study


def check(case: Case) -> None:
    """Count the runs of each arm that were scored on test, and look for those that are missing."""
    _dropped(case)
    if case.study is None:
        return
    _test_scored(case, case.study)
    _tuning(case, case.study)
    remaining = case.study.remaining
    if remaining.kind != "done":
        jobs = listed((f"{job.arm} seed {job.seed}" for job in remaining.jobs), 3)
        text = f"{counted(len(remaining.jobs), 'run')} of the {remaining.kind} round without a record ({jobs})"
        case.add("warning", "runs", f"the study is not complete: {text}")
    seeds = sorted(case.study.spec.seeds)
    skipped = [seed for seed in range(seeds[0], seeds[-1]) if seed not in seeds]
    if 0 < len(skipped) <= len(seeds):
        case.add("warning", "runs", f"the design's seeds are {listed(seeds, 20)}: {listed(skipped)} left out")


def _used(study: Study) -> set[str]:
    """Return the runs that rows rest on, or that are shown beside them."""
    runs = [*study.finals.values(), *study.runners_up.values(), *study.varied.values()]
    runs += [by_seed for rates in study.windows.values() for by_seed in rates.values()]
    return {record.run_id for by_seed in runs for record in by_seed.values()}


def _test_scored(case: Case, study: Study) -> None:
    used = _used(study)
    stale = study.stale
    by_arm: dict[str, list[RunRecord]] = defaultdict(list)
    for record in case.ended:
        if record.score("test") is not None:
            by_arm[case.arm(record)].append(record)
    for arm, records in by_arm.items():
        beside = [record for record in records if record.run_id not in used]
        if beside:
            old = sum(record.run_id in stale for record in beside)
            what = f"{arm}: {counted(len(records), 'run')} scored on test, {len(beside)} of them in no row"
            what += f" ({old} stale)" if old else ""
            rates = sorted({float(lr) for record in beside if isinstance(lr := record.identity.get("lr"), int | float)})
            at = f", at lr {listed(f'{rate:.3g}' for rate in rates)}" if rates else ""
            case.add("warning", "runs", what + at)


def _tuning(case: Case, study: Study) -> None:
    """Say where an arm had more runs at full length on validation than its trials count."""
    asked = {trial.record.run_id: trial.arm for trial in (*study.trials, *study.screened)}
    costs = {record.run_id for record in study.costs.values()}
    for arm in study.spec.labels:
        others = [
            record
            for record in case.ended
            if case.arm(record) == arm
            and record.score("test") is None
            and record.score("validation") is not None
            and record.run_id not in asked.keys() | costs
        ]
        if others:
            trials = sum(trial.arm == arm for trial in study.trials)
            text = f"{arm}: {trials + len(others)} tuning runs, {trials} of them counted as trials"
            case.add("warning", "runs", text)


def _dropped(case: Case) -> None:
    """Look for runs that others were trained with in one pack and that have no record."""
    known = {path.stem for path in (case.store.root / "records").rglob("*.json")}
    partners: dict[str, RunRecord] = {}
    for record in case.records:
        pack = record.provenance.get("pack")
        for run in (pack.get("lanes") or []) if isinstance(pack, dict) else []:
            if run not in known:
                partners.setdefault(str(run), record)
    entered = {str(line.facts.get("run")) for line in case.chain}
    for run, record in partners.items():
        if run not in entered:
            case.add(
                "breaks", "dropped",
                f"run {run} was trained in one pack with {case.arm(record)}, run {record.run_id}, and has no record",
            )  # fmt: skip
