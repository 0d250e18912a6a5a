"""Where the runs behind the rows were made: code, processor, threads, attention, precision."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from lorax.records import RunRecord
from lorax.records.fields import is_frozen, task
from lorax.reports.audit.case import Case, counted, listed

FACTS: dict[str, Callable[[RunRecord], Any]] = {
    "processor": lambda record: record.provenance.get("processor"),
    "device": lambda record: record.provenance.get("device"),
    "threads": lambda record: record.provenance.get("threads"),
    "attention": lambda record: record.model.get("attention"),
    "precision": lambda record: record.model.get("dtype"),
}


def check(case: Case) -> None:
    """Say which runs hold no commit, and in what the final runs of a task differ besides the design."""
    records, finals = case.ended, [record for record in case.finals if not is_frozen(record)]
    bare = [record for record in records if not record.provenance.get("commit")]
    if bare:
        among = {record.run_id for record in case.scored}
        n = sum(record.run_id in among for record in bare)
        text = (
            f"{len(bare):,} of {counted(len(records), 'record')} hold no commit ({n or 'none'} of them scored on test)"
        )
        case.add("warning", "commits", f"{text}: which code made them is not known")
    if dirty := sum(bool(record.provenance.get("dirty")) for record in records):
        text = f"{dirty:,} of {counted(len(records), 'record')} made with uncommitted changes in the code"
        case.add("warning", "commits", text)
    by_task: dict[str, list[RunRecord]] = defaultdict(list)
    for record in finals:
        by_task[task(record)].append(record)
    facts = {"commit": lambda record: str(record.provenance.get("commit") or "none")[:9], **FACTS}
    for name, runs in by_task.items():
        for fact, value in facts.items():
            _compare(case, name, runs, fact, value)


def _compare(case: Case, name: str, runs: list[RunRecord], fact: str, value: Callable[[RunRecord], Any]) -> None:
    """Warn of final runs that differ in one fact; say for which arms it is one with the arm."""
    values = {record.run_id: value(record) for record in runs}
    counts = Counter("not recorded" if each is None else str(each) for each in values.values())
    if len(counts) < 2:
        return
    text = f"{name}: final runs differ in {fact}: " + listed(f"{each} ({n})" for each, n in counts.most_common())
    usual = counts.most_common(1)[0][0]
    others = [
        arm
        for arm in dict.fromkeys(map(case.arm, runs))
        if all(str(values[run.run_id]) != usual for run in runs if case.arm(run) == arm)
    ]
    if others:
        text += f"; {listed(others)} on none of the usual: the difference is not the method's alone"
    case.add("warning", "commits" if fact == "commit" else "machine", text)
