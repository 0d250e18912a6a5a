"""Runs that must differ and do not: a seed's run put in the place of another's."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from lorax.records import RunRecord
from lorax.records.fields import is_frozen, method, settings, task
from lorax.reports.audit.case import Case, listed
from lorax.reports.audit.items import Answers

_LEAST, _SHARE, _TINY = 10, 0.5, 1e-5
"""Items and their share that two seeds may not have in common to the last digit; smaller losses may agree by chance."""
_CLOSE = 1e-6
"""Relative difference of curves below which they are one curve, written with other digits."""


def check(case: Case, answers: dict[str, Answers]) -> None:
    """Compare runs of one task: other seeds must give other losses, other arms too.

    Curves that are equal to the bit are `verify`'s; here are those with other last digits, and copied items.

    Args:
        case: what is looked at.
        answers: run id -> its test items, from `items.read`.
    """
    by_task: dict[str, list[RunRecord]] = defaultdict(list)
    for record in case.scored:
        if not is_frozen(record):
            by_task[task(record)].append(record)
    said: set[tuple[str, str]] = set()
    alike: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
    for name, records in by_task.items():
        losses, curves = _losses(records, answers), [_curve(record) for record in records]
        for i, one in enumerate(records):
            near = np.isclose(losses[i + 1 :], losses[i], rtol=_CLOSE, atol=0).sum(axis=1)
            equal = (losses[i + 1 :] == losses[i]).sum(axis=1)
            shared = (np.isfinite(losses[i + 1 :]) & np.isfinite(losses[i])).sum(axis=1)
            for at, other in enumerate(records[i + 1 :]):
                if _seed(one) == _seed(other):
                    if shared[at] >= _LEAST and equal[at] == shared[at]:
                        alike[name, case.arm(one), case.arm(other)].append(_seed(one))
                    continue
                if shared[at] >= _LEAST and near[at] > _SHARE * shared[at]:
                    said.add((one.run_id, other.run_id))
                    digits = "to the last digit" if near[at] == equal[at] else "but for the last digits"
                    _copied(case, one, other, f"losses of {{}}, {digits}, in {near[at]} of {shared[at]} items")
                if method(one) == method(other) and _near(curves[i], curves[i + 1 + at]):
                    _copied(case, one, other, "curve of {}, but for the last digits")
        _same_completions(case, records, answers, said)
    for (name, first, second), seeds in alike.items():
        text = f"{name}: {first} and {second} have the same loss in every item (seeds {listed(seeds)})"
        text += ": what differs between these arms changed nothing, or one is a copy of the other"
        case.add("warning", "copies", text)


def _copied(case: Case, one: RunRecord, other: RunRecord, what: str, level: str = "breaks") -> None:
    named = f"{case.arm(one)} seed {_seed(one)}, run {one.run_id}"
    text = f"{case.arm(other)} seed {_seed(other)} has the {what.format(named)}: two seeds "
    text += "cannot" if level == "breaks" else "hardly can"
    case.add(level, "copies", text, case.store.path(case.name, other.run_id))


def _seed(record: RunRecord) -> Any:
    return settings(record).get("seed")


def _losses(records: list[RunRecord], answers: dict[str, Answers]) -> np.ndarray:
    """Return (runs, items): the loss of each item; NaN where there is none, or one that others may have by chance."""
    place = {key: at for at, key in enumerate(sorted({key for r in records for key in answers[r.run_id].losses}))}
    losses = np.full((len(records), len(place)), np.nan)
    for row, record in zip(losses, records, strict=True):
        of_run = answers[record.run_id].losses
        row[[place[key] for key in of_run]] = list(of_run.values())
    losses[losses <= _TINY] = np.nan
    return losses


def _same_completions(
    case: Case, records: list[RunRecord], answers: dict[str, Answers], said: set[tuple[str, str]]
) -> None:
    """Warn of seeds whose every answer is the same, where enough different wrong ones were given."""
    same: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        of_run = answers[record.run_id]
        if of_run.wrong >= _LEAST // 2 and of_run.completions:
            same[method(record), of_run.completions].append(record)
    for twins in same.values():
        for other in twins[1:]:
            first = twins[0]
            if _seed(first) != _seed(other) and (first.run_id, other.run_id) not in said:
                what = f"answers of {{}}, {answers[other.run_id].wrong} different wrong ones too"
                _copied(case, first, other, what, "warning")  # so may seeds that hardly trained


def _curve(record: RunRecord) -> np.ndarray:
    losses = [row.get("loss") for row in record.curve]
    return np.array([np.nan if loss is None else loss for loss in losses], dtype=float)


def _near(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two curves agree up to their last digits, and are not equal (which `verify` finds)."""
    if len(one) != len(other) or len(one) < 3 or not np.isfinite(one).all() or np.array_equal(one, other):
        return False
    return bool(np.allclose(one, other, rtol=_CLOSE, atol=0))
