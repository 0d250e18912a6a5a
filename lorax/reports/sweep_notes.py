"""What stands below the table of a sweep: metric, where learning rates come from, failures, stale records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from lorax.records import RunRecord
from lorax.records.fields import is_frozen, learning_rate, moved_at_start, shots, task


def notes(records: list[RunRecord], only_validation: list[RunRecord], stale: dict[str, str], split: str) -> list[str]:
    """Return the sentences below the table.

    Args:
        records: those in the table.
        only_validation: those left out because they were scored on validation only.
        stale: run id -> why it was left out.
        split: the split whose scores are shown.
    """
    lines = [
        f"Scores in per cent, {split} split: mean ± SD over seeds (number of seeds).",
        _metrics(records, split),
    ]
    examples: dict[str, set[int]] = {}
    for record in filter(is_frozen, records):
        examples.setdefault(task(record), set()).add(shots(record))
    lines += [
        f"{name}: the base has {_either(numbers)} worked examples in its prompt, trained runs none."
        for name, numbers in examples.items()
        if numbers != {0}
    ]
    if (moved := moved_at_start(records)) is not None:
        lines.append(moved)
    by_hand = {_explicit(record) for record in records if not is_frozen(record)}
    if by_hand == {True}:
        lines.append("The learning rate was given by hand for all methods: this is not a tuned comparison.")
    elif True in by_hand:
        lines.append(
            "Learning rates were given by hand in some rows, elsewhere they are the task's base rate times the "
            "method's prior: this is not a tuned comparison."
        )
    else:
        lines.append("Learning rates are the task's base rate times the method's prior: not tuned on these runs.")
    if only_validation:
        lines.append(f"{len(only_validation)} runs without a {split} score (validation only) are left out.")
    failures = [f"{record.run_id}: {record.error}" for record in records if record.status == "failed"]
    lines += [f"Failed {line}" for line in failures[:5]] + (
        [f"... and {len(failures) - 5} more failed."] if failures[5:] else []
    )
    if stale:
        first = ", ".join(f"{run} ({why})" for run, why in sorted(stale.items())[:5])
        more = f" and {len(stale) - 5} more" if len(stale) > 5 else ""
        lines.append(f"Stale, left out: {first}{more}.")
    return lines


def _metrics(records: list[RunRecord], split: str) -> str:
    parts = []
    for name in sorted({task(record) for record in records}):
        of_task = [record for record in records if task(record) == name]
        sizes = {int(n) for record in of_task if (n := (record.scores.get(split) or {}).get("n"))}
        shares = {record.task["majority"] for record in of_task if record.task.get("majority")}
        items = f", {_either(sizes)} items" if sizes else ""
        majority = f", majority class {_either(shares, lambda share: f'{100 * share:.1f}')}" if shares else ""
        metric = " or ".join(sorted({str(record.task.get("metric", "score")) for record in of_task}))
        parts.append(f"{name}: {metric}{items}{majority}")
    return "; ".join(parts) + "."


def _either(values: Iterable[Any], text: Callable[[Any], str] = str) -> str:
    """Return `10`, `10 or 20`, `10, 20 or 40`."""
    words = [text(value) for value in sorted(values)]
    return " or ".join([", ".join(words[:-1]), words[-1]]) if words[1:] else words[0]


def _explicit(record: RunRecord) -> bool:
    """Return whether the rate was given by hand, rather than the task's base rate times the method's prior."""
    given = record.init_report.get("lr_given")
    if given is not None:
        return bool(given)
    base, prior = record.init_report.get("base_lr"), record.init_report.get("lr_prior")
    rate = learning_rate(record)
    if base is None or prior is None or rate is None:
        return False
    return not math.isclose(base * prior, rate, rel_tol=1e-6)
