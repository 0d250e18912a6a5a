"""What stands under a plain table: metric, how rates came about, failures, stale records."""

from __future__ import annotations

import math

from lorax.records import RunRecord
from lorax.studies.facts import is_frozen, shots, task


def notes(records: list[RunRecord], only: list[RunRecord], stale: dict[str, str], split: str) -> list[str]:
    """Return the lines under the table.

    Args:
        records: those in the table.
        only: those left out because they were scored on validation only.
        stale: run id -> why it was left out.
        split: the split whose scores are shown.
    """
    lines = [
        f"Scores in per cent, {split} split: mean ± SD over seeds (number of seeds).",
        _metrics(records, split),
    ]
    few = {task(record): shots(record) for record in records if shots(record)}
    lines += [f"{name}: the base has {n} worked examples in its prompt, trained runs none." for name, n in few.items()]
    if any(_explicit(record) for record in records if not is_frozen(record)):
        lines.append("The learning rate was given by hand for all methods: this is not a tuned comparison.")
    else:
        lines.append("Learning rates are the task's base rate times the method's prior: not tuned on these runs.")
    if only:
        lines.append(f"{len(only)} runs without a {split} score (validation only) are left out.")
    failures = [f"{record.run_id}: {record.error}" for record in records if record.status == "failed"]
    lines += [f"Failed {line}" for line in failures[:5]] + (
        [f"... and {len(failures) - 5} more failed."] if failures[5:] else []
    )
    if stale:
        shown = ", ".join(f"{run} ({why})" for run, why in sorted(stale.items())[:5])
        more = f" and {len(stale) - 5} more" if len(stale) > 5 else ""
        lines.append(f"Stale, left out: {shown}{more}.")
    return lines


def _metrics(records: list[RunRecord], split: str) -> str:
    parts = []
    for name in sorted({task(record) for record in records}):
        entries = [
            record.task | {"n": (record.scores.get(split) or {}).get("n")} for record in records if task(record) == name
        ]
        entry = next((item for item in entries if item.get("n")), entries[0])
        items = f", {entry['n']} items" if entry.get("n") else ""
        majority = f", majority class {100 * entry['majority']:.1f}" if entry.get("majority") else ""
        parts.append(f"{name}: {entry.get('metric', 'score')}{items}{majority}")
    return "; ".join(parts) + "."


def _explicit(record: RunRecord) -> bool:
    """Whether the rate was set by hand: not the task's base rate times the method's prior."""
    given = record.init_report.get("lr_given")
    if given is not None:
        return bool(given)
    base, prior, rate = (record.init_report.get(key) for key in ("base_lr", "lr_prior", "lr"))
    if base is None or prior is None or rate is None:
        return False
    return not math.isclose(base * prior, rate, rel_tol=1e-6)
