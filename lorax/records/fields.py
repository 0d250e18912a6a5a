"""What records say of themselves: method, task, digests. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lorax.records import RunRecord

_STAMP = ("digest", "version")


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
    """Return whether the run trained nothing, so that every seed is the same run; a failed one has not counted."""
    trained = record.costs.get("trainable")
    return "init" in record.identity and "lr" not in record.identity if trained is None else trained == 0


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


def one_per_seed(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Keep one run a task and seed (evaluated on other splits it has another id): a finished one, then the last."""
    best: dict[Any, RunRecord] = {}
    for record in sorted(records, key=lambda r: (r.status != "failed", str(r.provenance.get("finished") or ""))):
        best[task(record), record.config.get("seed")] = record
    return list(best.values())
