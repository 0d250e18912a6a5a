"""Items of final runs: the same questions for every arm, one expected answer a question, one score an answer."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from lorax.records import RunRecord, canonical
from lorax.records.fields import task
from lorax.reports.audit.case import Case, counted, listed


@dataclass(frozen=True)
class Answers:
    """One run's test items, as far as an audit compares them."""

    ids: frozenset[str]
    losses: dict[str, float]
    """Item -> its loss, where it is a number."""
    completions: str
    """Digest of all answers in order; empty where none were kept."""
    wrong: int
    """How many different wrong answers were given."""


@dataclass
class _Said:
    """What the items of one task say about a question: to be the same in all runs."""

    expected: dict[str, tuple[str, str]]
    """Item -> its expected answer, and the first run that holds it."""
    scores: dict[tuple[str, str, str], tuple[float, str]]
    """(item, expected, given) -> the score, and the first run that holds it."""


def read(case: Case, records: Iterable[RunRecord]) -> dict[str, Answers]:
    """Read the items of runs once, compare what must not differ between runs, and return what else test items say.

    Validation picks the rates, so its items are compared as well as those of test.

    Args:
        case: what is looked at.
        records: runs that are over.

    Returns:
        Run id -> its test items.
    """
    found: dict[str, Answers] = {}
    by_task: dict[str, _Said] = defaultdict(lambda: _Said({}, {}))
    for record in records:
        everything = list(case.store.items(record))
        rows = [row for row in everything if row.get("split") == "test"]
        said, other, unequal = by_task[task(record)], Counter[str](), Counter[str]()
        losses: dict[str, float] = {}
        wrong: set[str] = set()
        given = hashlib.sha256()
        for row in everything:
            key, loss, score, test = str(row.get("id")), row.get("loss"), row.get("score"), row.get("split") == "test"
            if test and isinstance(loss, int | float) and math.isfinite(loss):
                losses[key] = float(loss)
            if row.get("answer") is None or row.get("completion") is None:
                continue
            answer, completion = str(row["answer"]), str(row["completion"])
            if test:
                given.update(f"{key}\0{completion}\0".encode(errors="surrogatepass"))
                if score == 0:
                    wrong.add(completion)
            key = f"{row.get('split')} {key}"
            expected, first = said.expected.setdefault(key, (answer, record.run_id))
            if expected != answer:
                other[first] += 1
            elif isinstance(score, int | float):
                before, first = said.scores.setdefault((key, answer, completion), (float(score), record.run_id))
                if not math.isclose(before, score, rel_tol=1e-6, abs_tol=1e-9):
                    unequal[first] += 1
        where = case.store.path(case.name, record.run_id)
        for first, number in other.items():
            text = f"{counted(number, 'item')} with another expected answer than in run {first}"
            case.add("breaks", "items", text, where)
        for first, number in unequal.items():
            text = f"{counted(number, 'answer')} scored otherwise than the same answer in run {first}"
            case.add("breaks", "score", text, where)
        ids = frozenset(str(row.get("id")) for row in rows)
        found[record.run_id] = Answers(ids, losses, given.hexdigest() if wrong else "", len(wrong))
    return found


def check(case: Case, answers: dict[str, Answers]) -> None:
    """Look whether all final runs of a task were scored on the same items.

    Args:
        case: what is looked at.
        answers: from `read`.
    """
    by_task: dict[str, list[RunRecord]] = defaultdict(list)
    for record in case.scored:
        if answers[record.run_id].ids:
            by_task[task(record)].append(record)
    for name, records in by_task.items():
        sets: dict[frozenset[str], list[RunRecord]] = defaultdict(list)
        for record in records:
            sets[answers[record.run_id].ids].append(record)
        usual = max(sets, key=lambda ids: (len(sets[ids]), len(ids)))
        for ids, runs in sets.items():
            if ids == usual:
                continue
            text = (
                f"{name}: {listed(dict.fromkeys(map(case.arm, runs)))} ({counted(len(runs), 'final run')}) scored on "
                f"{counted(len(ids), 'test item')}, {len(ids & usual):,} of them among the {len(usual):,} of the others"
            )
            designed = case.study is not None and _differs_by_design(case, name, runs, sets[usual])
            case.add("warning" if designed else "breaks", "items", text + (": so by its design" if designed else ""))
        _asked(case, name, records)


def _asked(case: Case, name: str, records: list[RunRecord]) -> None:
    """Say where prompts differ to the letter though their ids, which fold case and space, do not."""
    by_digest: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        asked = record.task.get("asked")
        if isinstance(asked, dict) and asked.get("test"):
            by_digest[str(asked["test"])].append(record)
    if len(by_digest) > 1:
        rare = sorted(by_digest.values(), key=len)[:-1]
        arms = dict.fromkeys(case.arm(record) for runs in rare for record in runs)
        text = f"{name}: {listed(arms)} asked with other prompts or expected answers than the other arms"
        case.add("warning", "items", text)


def _differs_by_design(case: Case, name: str, runs: list[RunRecord], others: list[RunRecord]) -> bool:
    """Return whether the design gives these arms another set of data than the others."""
    assert case.study is not None
    consumes = case.study.spec.consumes

    def data_of(records: list[RunRecord]) -> set[str]:
        arms = {case.arm(record) for record in records}
        return {canonical(consumes.get(f"{name}/{arm}", {}).get("task")) for arm in arms}

    return data_of(runs).isdisjoint(data_of(others))
