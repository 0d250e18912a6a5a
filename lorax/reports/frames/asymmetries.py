"""Asymmetries between the rows of a table, read from their configurations: the table's footnotes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorax.records import RunRecord, canonical, knobs
from lorax.records.fields import flatten, task
from lorax.records.staleness import variants

_GRAVER = (
    "tuning trials",
    "objective",
    "alpha / rank",
    "scaling",
    "targets",
    "precision",
    "dropout",
    "loss mask",
    "steps",
)
"""Named first, in this order."""
_FREE = {*knobs.METHOD, *knobs.BOOKKEEPING, "lr", "seed", "task", "model", "evaluate"}
"""Fields in which rows may differ by intent: who they are, the replicate, what the protocol tunes, provenance."""
_FREE_PREFIX = ("init.", "task.", "model.", "study.", "hydra.")
_NAMES = {
    "dtype": "precision",
    "train.loss_mask": "loss mask",
    "train.head_lr": "learning rate of the head",
}
"""Fields that a footnote calls otherwise."""
_TECHNICAL = {f"train.{key}" for key in knobs.TRAIN_BOOKKEEPING}
"""Fields that change no result."""
_SCALE = {"standard": "alpha / rank", "rslora": "alpha / sqrt(rank)"}


@dataclass(frozen=True)
class Asymmetry:
    """One thing in which rows differ that is not what the table compares."""

    field: str
    """In words, as the footnote says it."""
    values: dict[str, list[str]]
    """The value as text -> the rows that have it."""

    def line(self) -> str:
        """Return the footnote: `precision: bfloat16 (lora, pissa), float32 (full)`."""
        return f"{self.field}: " + ", ".join(f"{value} ({', '.join(rows)})" for value, rows in self.values.items())

    def rows_unlike(self, row: str) -> list[str]:
        """Return the rows whose value differs from that of `row`."""
        same = next((rows for rows in self.values.values() if row in rows), [])
        return [other for rows in self.values.values() for other in rows if other not in same]


def lint(rows: Mapping[str, Iterable[RunRecord]], trials: Mapping[str, int] | None = None) -> list[Asymmetry]:
    """Return what differs between rows besides the method and its tuned learning rate.

    Looks at alpha / rank, scaling, targets, precision, dropout, loss mask, steps, epochs, batch size,
    schedule and every other shared field of the configuration, and at the fields of task and model from which
    other data or weights follow; a field that a row does not have (dropout under full fine-tuning) is not a difference.

    Args:
        rows: row label -> its records (any number of seeds and tasks).
        trials: row label -> number of learning rates tried in tuning.

    Returns:
        The asymmetries, the graver ones first, each with the rows that have each value.
    """
    runs = {label: list(records) for label, records in rows.items()}
    # A task that one row lacks must not look like a difference in steps or batch size.
    tasks = [{task(record) for record in records} for records in runs.values() if records]
    shared = set.intersection(*tasks) if tasks else set()
    variant_fields = variants(record for records in runs.values() for record in records)
    facts = {
        label: _facts([record for record in records if task(record) in shared], variant_fields)
        for label, records in runs.items()
    }
    for label, number in (trials or {}).items():
        if label in facts:
            facts[label]["tuning trials"] = {str(number)}
    fields = dict.fromkeys(field for of_row in facts.values() for field in of_row)
    order = [field for field in _GRAVER if field in fields]
    order += sorted(field for field in fields if field not in _GRAVER)
    differences = []
    for field in order:
        values: dict[str, list[str]] = {}
        for label, of_row in facts.items():
            if field in of_row:
                values.setdefault(" and ".join(sorted(of_row[field])), []).append(label)
        if len(values) > 1:
            differences.append(Asymmetry(field, values))
    return differences


def footnotes(differences: list[Asymmetry], reference: str | None = None) -> tuple[list[str], dict[str, list[int]]]:
    """Number the asymmetries and say which rows carry which number.

    Args:
        differences: from `lint`.
        reference: rows unlike this one are marked; None marks all but the largest group.

    Returns:
        The footnote lines in order (numbers from 1), and row label -> its numbers.
    """
    marks: dict[str, list[int]] = {}
    for number, item in enumerate(differences, start=1):
        common = reference if reference is not None else max(item.values.values(), key=len)[0]
        for row in item.rows_unlike(common):
            marks.setdefault(row, []).append(number)
    return [item.line() for item in differences], marks


def _facts(records: list[RunRecord], variant_fields: Mapping[str, Mapping[str, Any]]) -> dict[str, set[str]]:
    """Return field in words -> the values (as text) among a row's records."""
    facts: dict[str, set[str]] = {}
    for record in records:
        for field, value in {**_of(record), **variant_fields.get(record.run_id, {})}.items():
            if value is not None:
                facts.setdefault(field, set()).add(value if isinstance(value, str) else _text(value))
    return facts


def _of(record: RunRecord) -> dict[str, Any]:
    """Return field in words -> value of one record."""
    init = record.identity.get("init")
    used: dict[str, Any] = init if isinstance(init, dict) else {}
    facts: dict[str, Any] = {}
    for key, value in flatten(record.config).items():
        if key in _FREE or key in _TECHNICAL or key.startswith(_FREE_PREFIX) or not _consumed(record, key):
            continue
        facts[_NAMES.get(key, key.removeprefix("train."))] = value
    if _consumed(record, "steps"):
        facts["objective"] = record.identity.get("objective", knobs.LIKELIHOOD)
    scaling = used.get("scaling")
    if used.get("alpha") and used.get("rank"):
        facts["alpha / rank"] = used["alpha"] / used["rank"]
    if scaling is not None:
        facts["scaling"] = f"{scaling} (eta = {_SCALE[scaling]})" if scaling in _SCALE else str(scaling)
    facts["precision of what trains"] = record.init_report.get("trained_dtype")
    steps, batch, n = record.config.get("steps"), record.config.get("batch_size"), record.task.get("n_train")
    if steps and batch and n and _consumed(record, "steps"):
        facts["epochs"] = f"{steps * batch / n:.3g}"
    return facts


def _consumed(record: RunRecord, key: str) -> bool:
    """Return whether the run used a field; where the identity does not say it, the field counts as used."""
    known = flatten(record.identity)
    if "init" not in record.identity and "init.name" not in known:
        return True
    return key in known or any(other.startswith(f"{key}.") for other in known)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else canonical(value).strip('"')
