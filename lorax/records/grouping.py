"""What a run consumed, and which fields tell rows apart. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorax.records import RunRecord, canonical, knobs
from lorax.records.fields import flatten, is_frozen, is_stamp, method, task
from lorax.records.staleness import variants

# What never tells two rows apart: the replicate, the columns, where and how it ran, what a version says.
_APART = {*knobs.BOOKKEEPING, "seed", "evaluate", "schema", "diagnostics"}


@dataclass(frozen=True)
class Row:
    """One line of a table: a method at one setting."""

    method: str
    """The initialiser's name."""
    rank: int | None
    """None where the method ignores the rank (its twins are one row)."""
    fields: tuple[tuple[str, str], ...] = ()
    """The other fields that set this row apart from rows of the same method."""
    frozen: bool = False
    """Nothing trained: the base model itself."""
    called: str = ""
    """The `label` that all its runs were given and no other row was."""

    @property
    def label(self) -> str:
        """The runs' own label, or method and fields, without the rank: `lora_ga alpha=8 zeta=16`."""
        return self.called or " ".join([self.method, *(f"{key}={value}" for key, value in self.fields)])

    @property
    def key(self) -> tuple:
        """Order of rows: the frozen base first, then by method, rank and fields (numbers as numbers)."""
        return (
            not self.frozen,
            self.method,
            self.rank or 0,
            [(key, _number(value), value) for key, value in self.fields],
        )


def consumed(record: RunRecord, given: Iterable[str] = ()) -> dict[str, Any]:
    """Return the fields a run used and that may tell it from others, without those that never do.

    The identity holds what the method consumes (zeta is absent from a LoRA run), so a swept field
    that a method ignores does not split its rows.

    Args:
        record: the run.
        given: fields with a default of the method's own (alpha, ...) that are to be kept all the same.
    """
    source = record.identity if "init" in record.identity else record.config
    flat = {}
    for key, value in flatten(source).items():
        short = key.removeprefix("init.").removeprefix("fields.").removeprefix("consumed.")
        parts = short.split(".")
        # A model is told apart by its name, a task is a column, versions and digests are stamps.
        if short == "init" or parts[0] in _APART or parts[0] == "task" or is_stamp(key):
            continue
        if parts[0] == "model" and parts[-1] not in ("model", "name"):
            continue
        if key in ("init.name", "init") or value is None or short == "eta":
            continue
        if short in knobs.METHOD_DEFAULTS and short not in given and not _is_given(record, short):
            continue
        flat["model" if parts[0] == "model" else short] = _comparable(value)
    return flat


def _is_given(record: RunRecord, key: str) -> bool:
    """Return whether somebody set a field, as `alpha` or as `init.alpha`; else it follows from method and rank."""
    own = record.config.get("init")
    return (isinstance(own, Mapping) and own.get(key) is not None) or record.config.get(key, ...) is not None


def _comparable(value: Any) -> Any:
    """Return a value such that equal ones are equal: numbers to twelve digits, names of layers in one order."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    return sorted(value) if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value) else value


def rows_of(records: list[RunRecord]) -> dict[str, Row]:
    """Return run id -> row: method, rank, and the fields that vary among runs of one method and task.

    A learning rate that follows from method, rank and task is a column; only one that varies while
    everything else is equal makes rows of its own.
    """
    # What one run was given and another took by default is one field of both: alpha=16 is the default's twin.
    given = {(method(record), key) for record in records for key in knobs.METHOD_DEFAULTS if _is_given(record, key)}
    values: dict[str, dict[str, Any]] = {
        record.run_id: consumed(record, [key for name, key in given if name == method(record)]) for record in records
    }
    for run, own in variants(records).items():
        values[run] |= own
    swept = _varying(records, values, lambda record: (method(record), task(record)), skip={"lr", "rank"})
    rate = _varying(
        records,
        values,
        lambda record: (method(record), task(record), canonical(_pick(values[record.run_id], None, {"lr"}))),
        only={"lr"},
    )
    words, rows = _words(values.values()), {}
    for record in records:
        own = values[record.run_id]
        keys = swept[method(record)] | rate[method(record)]
        fields = tuple((key, words[key][canonical(own[key])]) for key in sorted(keys) if key in own)
        rows[record.run_id] = Row(method(record), own.get("rank"), fields, is_frozen(record))
    return _called(records, rows)


def _called(records: list[RunRecord], rows: Mapping[str, Row]) -> dict[str, Row]:
    """Give a row the label that all its runs carry, unless rows that differ in more than the rank carry it too."""
    labels: dict[Row, set[str]] = defaultdict(set)
    for record in records:
        labels[rows[record.run_id]].add(record.label)
    names = {row: found.pop() for row, found in labels.items() if len(found) == 1}
    settings: dict[str, set[Any]] = defaultdict(set)
    for row, name in names.items():
        settings[name].add((row.method, row.fields))
    return {run: replace(row, called=_alone(names.get(row, ""), settings)) for run, row in rows.items()}


def _alone(name: str, settings: Mapping[str, set[Any]]) -> str:
    return name if name and len(settings[name]) == 1 else ""


def _words(values: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return key -> value (canonical) -> its text: four digits where these tell all values apart, else every one."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for own in values:
        for key, value in own.items():
            found[key][canonical(value)] = value
    words = {}
    for key, by in found.items():
        short = {text: _short(value) for text, value in by.items()}
        words[key] = short if len(set(short.values())) == len(short) else {text: text.strip('"') for text in by}
    return words


def _pick(values: dict[str, Any], keep: set[str] | None, drop: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in drop and (keep is None or key in keep)}


def _varying(records, values, group, skip=frozenset(), only=None) -> dict[str, set[str]]:
    """Return method -> fields that take more than one value inside a group."""
    seen: dict[tuple, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    sizes: dict[tuple, int] = defaultdict(int)
    for record in records:
        sizes[group(record)] += 1
        for key, value in _pick(values[record.run_id], only, set(skip)).items():
            seen[group(record)][key].add(canonical(value))
    counts: dict[tuple, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        for key in values[record.run_id]:
            counts[group(record)][key] += 1
    result: dict[str, set[str]] = defaultdict(set)
    for place, keys in seen.items():
        result[place[0]] |= {key for key, found in keys.items() if len(found) > 1 or counts[place][key] < sizes[place]}
    return result


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
