"""Other names in the results folder under which the same comparison was run: which one was to be shown?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lorax.errors import UserError
from lorax.records import RunRecord, Store
from lorax.records.fields import method, task
from lorax.records.integrity import read_record
from lorax.reports.audit.case import Case, counted, listed, read_design

_SHARED = 2
"""Methods that two names must share: one alone is no comparison."""


@dataclass(frozen=True)
class _Facts:
    """What a name compares."""

    model: str
    tasks: frozenset[str]
    methods: frozenset[str]


def check(case: Case) -> None:
    """Name every other study or sweep of the same model, a same task and at least two same methods."""
    own = _of_design(case.registered) or _of_records(case.records)
    if own is None:
        return
    least = min(_SHARED, len(own.methods))
    for name in _names(case.store):
        if name == case.name:
            continue
        design = read_design(case.store, name)
        other = _of_design(design) or _of_records(list(_records(case.store, name)))
        if other is None or other.model != own.model or not other.tasks & own.tasks:
            continue
        shared = sorted(other.methods & own.methods)
        if len(shared) >= least:
            _say(case, name, design, shared, sorted(other.tasks & own.tasks))


def _say(case: Case, name: str, design: dict[str, Any], shared: list[str], tasks: list[str]) -> None:
    records = list(_records(case.store, name))
    scored = [record for record in records if record.score("test") is not None]
    dates = sorted(
        str(record.provenance.get("started") or record.provenance.get("finished") or "") for record in records
    )
    when = f"from {dates[0][:16]} to {dates[-1][:16]}" if dates and dates[0] else "at an unknown time"
    seeds = sorted({str(record.config.get("seed")) for record in scored}, key=lambda seed: (len(seed), seed))
    what = "study" if design else "runs"
    when_fixed = str(design.get("fixed") or "")[:16] or "at an unknown time"
    fixed = f", fixed {when_fixed}" if design else ""
    case.add(
        "warning", "siblings",
        f"{what} {name!r} compares {listed(shared, 8)} on {listed(tasks)} too{fixed}: "
        f"{counted(len(scored), 'run')} scored on test, {counted(len(seeds), 'seed')} ({listed(seeds, 8)}), run {when}",
    )  # fmt: skip


def _names(store: Store) -> list[str]:
    """Return every name with records, a design or a state."""
    designs = store.root / "studies"
    names = {str(path.relative_to(designs).with_suffix("")) for path in designs.rglob("*.json")}
    return sorted(names.union(store.names()))


def _of_design(data: dict[str, Any]) -> _Facts | None:
    with suppress(KeyError, TypeError, AttributeError):
        spec = data["spec"]
        methods = {str(arm["init"]) for arm in spec["arms"] if arm.get("trained", True)}
        return _Facts(str(spec["model"]), frozenset(map(str, spec["tasks"])), frozenset(methods))
    return None


def _of_records(records: list[RunRecord]) -> _Facts | None:
    scored = [record for record in records if record.score("test") is not None]
    if not scored:
        return None
    methods = frozenset(method(record) for record in scored) - {"none"}
    return _Facts(str(scored[0].model.get("name")), frozenset(map(task, scored)), methods)


def _records(store: Store, name: str) -> Iterator[RunRecord]:
    """Yield what lies under another name, as far as it can be read; whether it may be believed is another question."""
    folder = store.folder(name)
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        with suppress(UserError):
            yield read_record(path)
