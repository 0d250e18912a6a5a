"""What stands below the table of a sweep: metric, where learning rates come from, failures, stale records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from lorax.records import RunRecord
from lorax.records.fields import is_frozen, learning_rate, moved_at_start, parts, shots, task, trained_on_rewards


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
    groups = {task(record): parts(record) for record in records if parts(record)}
    lines += [
        f"{name}: one run on all of {', '.join(own)}; its score is the mean over tasks." for name, own in groups.items()
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
    if (rewarded := trained_on_rewards(records)) is not None:
        lines.append(rewarded)
    if (mixed := _mixtures(records)) is not None:
        lines.append(mixed)
    by_hand = {_explicit(r) for r in records if not is_frozen(r) and "mix" not in r.init_report}
    if by_hand == {True}:
        lines.append("The learning rate was given by hand for all methods: this is not a tuned comparison.")
    elif True in by_hand:
        lines.append(
            "Learning rates were given by hand in some rows, elsewhere they are the task's base rate times the "
            "method's prior: this is not a tuned comparison."
        )
    elif by_hand or mixed is None:  # a mixture has none
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


def _mixtures(records: Iterable[RunRecord]) -> str | None:
    """Say what the coefficients of mixtures were searched on and what that has cost; None where there are none."""
    mixtures = [record for record in records if "mix" in record.init_report]
    if not mixtures:
        return None
    inits = [record.identity["init"] for record in mixtures]
    items = _either({f"{init['items']} {init['split']} items" for init in inits})
    evaluations = sum(record.init_report["mix"]["evaluations"] for record in mixtures)
    seconds = sum(record.costs.get("train_seconds") or 0.0 for record in mixtures)
    return (
        f"Mixtures of saved adapters: coefficients searched on {items}, {evaluations:,} evaluations and {seconds:.1f} "
        "s in all, the experts' own training not counted; `trained` counts coefficients."
    )


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
