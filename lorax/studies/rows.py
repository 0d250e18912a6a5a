"""What a run consumed, which fields tell rows apart, and which records are stale. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorax.records import RunRecord, canonical

# What never tells two rows apart: the replicate, the columns, where and how it ran, what a version says.
_APART = {"seed", "name", "results_dir", "device", "track", "evaluate", "label", "schema"}
_STAMP = ("digest", "version")


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

    @property
    def label(self) -> str:
        """Method and fields, without the rank: `lora_ga alpha=8 zeta=16`."""
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.fields)])

    @property
    def key(self) -> tuple:
        """Order of rows: the frozen base first, then by method, rank and fields (numbers as numbers)."""
        return (
            not self.frozen,
            self.method,
            self.rank or 0,
            [(key, _number(value), value) for key, value in self.fields],
        )


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one level of dotted keys.

    Examples:
        >>> flatten({"init": {"name": "lora", "rank": 8}, "lr": 0.1})
        {'init.name': 'lora', 'init.rank': 8, 'lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def method(record: RunRecord) -> str:
    """Return the name of the run's initialiser."""
    init = record.config.get("init") or record.identity.get("init") or {}
    return str(init.get("name", "?") if isinstance(init, dict) else init)


def task(record: RunRecord) -> str:
    """Return the name of the run's task."""
    name = record.task.get("name") or record.config.get("task") or "?"
    return str(name.get("name", "?") if isinstance(name, dict) else name)


def is_frozen(record: RunRecord) -> bool:
    """Return whether the run trained nothing, so that every seed is the same run."""
    return record.costs.get("trainable") == 0


def shots(record: RunRecord) -> int:
    """Return how many worked examples stood in the prompts of a frozen base; trained runs get none."""
    spec = record.config.get("task")
    return int(spec.get("shots") or 0) if isinstance(spec, dict) and is_frozen(record) else 0


def eta_of(record: RunRecord) -> list[float]:
    """Return the etas of a run's layers: one number, both ends of a range, or nothing."""
    eta = record.init_report.get("eta")
    if isinstance(eta, dict):
        eta = list(eta.values())
    values = eta if isinstance(eta, list | tuple) else [eta]
    return [value for value in values if value is not None]


def consumed(record: RunRecord) -> dict[str, Any]:
    """Return the fields a run used and that may tell it from others, without those that never do.

    The identity holds what the method consumes (zeta is absent from a LoRA run), so a swept field
    that a method ignores does not split its rows.
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
        if key in ("init.name", "init") or value is None or _derived(record, short):
            continue
        flat["model" if parts[0] == "model" else short] = value
    return flat


def _derived(record: RunRecord, key: str) -> bool:
    """Return whether a field follows from others: eta always, alpha and its kind where nobody set them."""
    own = record.config.get("init")
    given = isinstance(own, Mapping) and own.get(key) is not None  # set as `init.alpha`
    return key == "eta" or (key in _DEFAULTS and not given and key in record.config and record.config[key] is None)


_DEFAULTS = ("alpha", "scaling", "zeta", "zeta_rule", "gamma")


def is_stamp(key: str) -> bool:
    """Return whether a dotted key holds a digest or a version rather than a choice."""
    return any(part.rstrip("s").endswith(_STAMP) for part in key.split("."))


def stamps(record: RunRecord) -> dict[str, Any]:
    """Return the digests and versions a record was made under, by dotted key."""
    found = {key: value for key, value in flatten(record.identity).items() if is_stamp(key)}
    for place in ("task", "model"):
        entry = getattr(record, place)
        found |= {f"{place}.{key}": entry[key] for key in _STAMP if entry.get(key) is not None}
    return found


def fresh(
    records: Iterable[RunRecord], wanted: Iterable[Mapping[str, Any]] = ()
) -> tuple[list[RunRecord], dict[str, str]]:
    """Part records into those of the newest digests and versions, and the stale ones.

    Two records of one method on one task and model must agree in every digest and version; where
    they do not, those that agree with the run that finished last stay, and the others are named.

    Args:
        records: of any age.
        wanted: identities of runs as they would be run now; where these hold digests and versions,
            they decide instead of the run that finished last.

    Returns:
        The fresh records in the given order, and run id -> reason for each stale one.
    """
    records = list(records)
    newest: dict[tuple, tuple[str, set]] = {}
    for identity in wanted:
        for place, value in _stamped_identity(identity):
            newest.setdefault(place, (_NOW, set()))[1].add(value)
    for record in records:
        when = str(record.provenance.get("finished") or "")
        for place, value in _stamped(record):
            if place not in newest or when > newest[place][0]:
                newest[place] = (when, {value})
    stale: dict[str, str] = {}
    for record in records:
        wrong = [key[-1] for key, value in _stamped(record) if value not in newest[key][1]]
        if wrong:
            stale[record.run_id] = "another " + ", ".join(sorted(set(wrong)))
    return [record for record in records if record.run_id not in stale], stale


_NOW = "~"
"""Sorts after every date."""


def _stamped(record: RunRecord) -> list[tuple[tuple, Any]]:
    """Return ((scope..., key), value): data and model stamps hold for all methods, others for one."""
    place = (task(record), str(record.model.get("name")), record.config.get("data_seed"))
    return _scoped(place, method(record), stamps(record))


def _stamped_identity(identity: Mapping[str, Any]) -> list[tuple[tuple, Any]]:
    """The same of a run that has not been made yet."""
    name, model, init = (str(identity.get(key, {}).get("name")) for key in ("task", "model", "init"))
    found = {key: value for key, value in flatten(dict(identity)).items() if is_stamp(key)}
    return _scoped((name, model, identity.get("data_seed")), init, found)


def _scoped(place: tuple, init: str, found: Mapping[str, Any]) -> list[tuple[tuple, Any]]:
    shared = ("task", "model", "data", "versions")
    return [((*place, "" if key.startswith(shared) else init, key), value) for key, value in found.items()]


def rows_of(records: list[RunRecord]) -> dict[str, Row]:
    """Return run id -> row: method, rank, and the fields that vary among runs of one method and task.

    A learning rate that follows from method, rank and task is a column; only one that varies while
    everything else is equal makes rows of its own.
    """
    values: dict[str, dict[str, Any]] = {record.run_id: consumed(record) for record in records}
    swept = _varying(records, values, lambda record: (method(record), task(record)), skip={"lr", "rank"})
    rate = _varying(
        records,
        values,
        lambda record: (method(record), task(record), canonical(_pick(values[record.run_id], None, {"lr"}))),
        only={"lr"},
    )
    rows = {}
    for record in records:
        own = values[record.run_id]
        keys = swept[method(record)] | rate[method(record)]
        fields = tuple((key, _short(own[key])) for key in sorted(keys) if key in own)
        rows[record.run_id] = Row(method(record), own.get("rank"), fields, is_frozen(record))
    return rows


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
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "+".join(str(item) for item in value)
    return str(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
