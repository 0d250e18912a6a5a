"""What a run consumed, and which of its fields set a table's rows apart. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorax.records import RunRecord, canonical, knobs
from lorax.records.fields import flatten, is_frozen, is_stamp, method, settings, task
from lorax.records.staleness import variants

_NEVER_A_ROW = {*knobs.BOOKKEEPING, "seed", "evaluate", "schema", "diagnostics"}
"""Fields that never set two rows apart: the replicate, what is a column, where and how the run was made."""
Fields = dict[str, Any]
"""Field -> value, as one run consumed it."""


@dataclass(frozen=True)
class Row:
    """One line of a table: a method at one setting."""

    method: str
    """The initialiser's name."""
    rank: int | None
    """None where the method ignores the rank: its runs at several ranks are one row."""
    fields: tuple[tuple[str, str], ...] = ()
    """The other fields that set this row apart from rows of the same method."""
    frozen: bool = False
    """Nothing trained: the base model itself."""
    common_label: str = ""
    """The `label` that all runs of this row carry and no run of another row does."""

    @property
    def label(self) -> str:
        """The runs' common label, or method and fields, without the rank: `lora_ga alpha=8 zeta=16`."""
        return self.common_label or " ".join([self.method, *(f"{key}={value}" for key, value in self.fields)])

    @property
    def key(self) -> tuple[Any, ...]:
        """Order of rows: the frozen base first, then by method, rank and fields (numbers as numbers)."""
        return (
            not self.frozen,
            self.method,
            self.rank or 0,
            [(key, _number(value), value) for key, value in self.fields],
        )


def consumed(record: RunRecord, given: Iterable[str] = ()) -> Fields:
    """Return the fields that a run used, without those that never set rows apart.

    The identity holds what the method consumes (zeta is absent from a LoRA run), so a swept field
    that a method ignores does not split its rows.

    Args:
        record: the run.
        given: fields to keep although this run took the method's default (alpha, ...).
    """
    fields = {}
    for key, value in flatten(settings(record)).items():
        short = key.removeprefix("init.").removeprefix("fields.").removeprefix("consumed.")
        parts = short.split(".")
        # The name of a model counts, the rest of it does not; a task is a column; digests and versions are no choice.
        if short == "init" or parts[0] in _NEVER_A_ROW or parts[0] == "task" or is_stamp(key):
            continue
        if parts[0] == "model" and parts[-1] not in ("model", "name"):
            continue
        if key in ("init.name", "init") or value is None or short == "eta":
            continue
        if short in knobs.METHOD_DEFAULTS and short not in given and not _is_given(record, short):
            continue
        fields["model" if parts[0] == "model" else short] = _comparable(value)
    return fields


def rows_of(records: list[RunRecord]) -> dict[str, Row]:
    """Return run id -> row: method, rank, and the fields that vary among runs of one method and task.

    A learning rate that follows from method, rank and task is a column; only one that varies while
    everything else is equal makes separate rows.
    """
    # A default that another run of the method was given by hand counts for both: alpha=16 given and by default are one.
    given = {(method(record), key) for record in records for key in knobs.METHOD_DEFAULTS if _is_given(record, key)}
    values = {record.run_id: consumed(record, [key for m, key in given if m == method(record)]) for record in records}
    for run, fields in variants(records).items():
        values[run] |= fields

    def setting(record: RunRecord) -> Hashable:
        return method(record), task(record), canonical(_without(values[record.run_id], {"lr"}))

    others = {run: _without(fields, {"lr", "rank", *filter(_of_rewards, fields)}) for run, fields in values.items()}
    swept = _varying(records, others, _method_and_task)
    rates = {run: {key: fields[key] for key in ("lr",) if key in fields} for run, fields in values.items()}
    rewarded = {run: {key: item for key, item in fields.items() if _of_rewards(key)} for run, fields in values.items()}
    rewards = _varying([record for record in records if rewarded[record.run_id]], rewarded, _method_and_task)
    rate = _varying(records, rates, setting)
    texts, rows = _texts(values.values()), {}
    for record in records:
        fields = values[record.run_id]
        keys = swept[method(record)] | rate[method(record)] | rewards[method(record)] | {"objective"}
        pairs = tuple((key, texts[key][canonical(fields[key])]) for key in sorted(keys) if key in fields)
        rows[record.run_id] = Row(method(record), fields.get("rank"), pairs, is_frozen(record))
    return _with_labels(records, rows)


def _of_rewards(key: str) -> bool:
    """Whether a field says how a run was trained on rewards; only such runs have it."""
    return key.startswith("reinforce.")


def _method_and_task(record: RunRecord) -> Hashable:
    return method(record), task(record)


def _is_given(record: RunRecord, key: str) -> bool:
    """Return whether somebody set a field, as `alpha` or as `init.alpha`; else it follows from method and rank."""
    init = record.config.get("init")
    return (isinstance(init, Mapping) and init.get(key) is not None) or record.config.get(key, ...) is not None


def _comparable(value: Any) -> Any:
    """Return a value such that equal ones are equal: numbers to twelve digits, names of layers in one order."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    return sorted(value) if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value) else value


def _with_labels(records: list[RunRecord], rows: Mapping[str, Row]) -> dict[str, Row]:
    """Give a row the label that all its runs carry, unless rows that differ in more than the rank carry it too."""
    labels: dict[Row, set[str]] = defaultdict(set)
    for record in records:
        labels[rows[record.run_id]].add(record.label)
    common = {row: next(iter(texts)) for row, texts in labels.items() if len(texts) == 1}
    carriers: dict[str, set[Hashable]] = defaultdict(set)
    for row, label in common.items():
        carriers[label].add((row.method, row.fields))
    unique = {row: label for row, label in common.items() if len(carriers[label]) == 1}
    return {run: replace(row, common_label=unique.get(row, "")) for run, row in rows.items()}


def _texts(values: Iterable[Fields]) -> dict[str, dict[str, str]]:
    """Return key -> value (canonical) -> its text: short where short texts differ for all values, else in full."""
    by_key: dict[str, dict[str, Any]] = defaultdict(dict)
    for fields in values:
        for key, value in fields.items():
            by_key[key][canonical(value)] = value
    texts = {}
    for key, by_value in by_key.items():
        short = {text: _short(value) for text, value in by_value.items()}
        texts[key] = short if len(set(short.values())) == len(short) else {text: text.strip('"') for text in by_value}
    return texts


def _without(fields: Fields, keys: Collection[str]) -> Fields:
    return {key: value for key, value in fields.items() if key not in keys}


def _varying(
    records: Iterable[RunRecord], values: Mapping[str, Fields], compared: Callable[[RunRecord], Hashable]
) -> dict[str, set[str]]:
    """Return method -> fields in which runs that are compared with each other differ.

    Args:
        records: the runs.
        values: run id -> the fields to compare.
        compared: runs for which it returns the same are compared; it differs for two methods.
    """
    together: dict[Hashable, list[RunRecord]] = defaultdict(list)
    for record in records:
        together[compared(record)].append(record)
    varying: dict[str, set[str]] = defaultdict(set)
    for members in together.values():
        seen: dict[str, list[str]] = defaultdict(list)
        for record in members:
            for key, value in values[record.run_id].items():
                seen[key].append(canonical(value))
        varying[method(members[0])] |= {
            key for key, texts in seen.items() if len(set(texts)) > 1 or len(texts) < len(members)
        }
    return varying


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 or not value.is_integer() else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return "+".join(str(item) for item in value)
    return str(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
