"""Which records are of today's data, models and code, and which tasks and models were asked for otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lorax.records import RunRecord, canonical
from lorax.studies.facts import flatten, is_stamp, method, stamps, task


def fresh(
    records: Iterable[RunRecord], wanted: Iterable[Mapping[str, Any]] = ()
) -> tuple[list[RunRecord], dict[str, str]]:
    """Part records into those of the newest digests and versions, and the stale ones.

    Two records of one method on one task and model must agree in every digest and version; where
    they do not, those that agree with the run that finished last stay, and the others are named.
    A task or a model that was asked for otherwise (`task.n_train=100`) has a digest of its own.

    Args:
        records: of any age.
        wanted: identities of runs as they would be run now; where these hold digests and versions,
            they decide instead of the run that finished last.

    Returns:
        The fresh records in the given order, and run id -> reason for each stale one.
    """
    records = list(records)
    newest: dict[tuple, tuple[str, set]] = {}
    wanted = list(wanted)
    stamped = {record.run_id: _stamped(record, apart=not wanted) for record in records}
    for identity in wanted:
        for place, value in _stamped_identity(identity):
            newest.setdefault(place, (_NOW, set()))[1].add(value)
    for record in records:
        when = str(record.provenance.get("finished") or "")
        for place, value in stamped[record.run_id]:
            if place not in newest or when > newest[place][0]:
                newest[place] = (when, {value})
    stale: dict[str, str] = {}
    for record in records:
        wrong = [key[-1] for key, value in stamped[record.run_id] if value not in newest[key][1]]
        if wrong:
            stale[record.run_id] = "another " + ", ".join(sorted(set(wrong)))
    return [record for record in records if record.run_id not in stale], stale


_NOW = "~"
"""Sorts after every date."""


def _stamped(record: RunRecord, apart: bool) -> list[tuple[tuple, Any]]:
    """Return ((scope..., key), value): data and model stamps hold for all methods, others for one.

    Args:
        record: the run.
        apart: whether tasks and models whose fields differ are different ones.
    """
    place = (task(record), str(record.model.get("name")), record.config.get("data_seed"))
    asked = {key: canonical(_choices(record, key)) for key in PLACES} if apart else {}
    found = _scoped(place, method(record), stamps(record))
    return [((*scope[:-1], asked.get(scope[-1].partition(".")[0], ""), scope[-1]), value) for scope, value in found]


def _stamped_identity(identity: Mapping[str, Any]) -> list[tuple[tuple, Any]]:
    """The same of a run that has not been made yet."""
    name, model, init = (str(identity.get(key, {}).get("name")) for key in ("task", "model", "init"))
    found = {key: value for key, value in flatten(dict(identity)).items() if is_stamp(key)}
    scoped = _scoped((name, model, identity.get("data_seed")), init, found)
    return [((*scope[:-1], "", scope[-1]), value) for scope, value in scoped]


def _scoped(place: tuple, init: str, found: Mapping[str, Any]) -> list[tuple[tuple, Any]]:
    shared = ("task", "model", "data", "versions")
    return [((*place, "" if key.startswith(shared) else init, key), value) for key, value in found.items()]


def several_digests(records: Iterable[RunRecord]) -> set[tuple[str, str]]:
    """Return ("task" or "model", its name) wherever the records hold more than one digest.

    These differ in a field of the task or of the model, as a grid over `task.n_train` makes them:
    `fresh` has left out those that differ in age alone.
    """
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        for place in PLACES:
            name, digest = _digest(record, place)
            found[place, name].add(digest)
    return {one for one, digests in found.items() if len(digests) > 1}


def variants(records: Iterable[RunRecord]) -> dict[str, dict[str, Any]]:
    """Return run id -> the fields of its task and model that tell it from others of the same name.

    Nothing where there is one digest. Fields that differ while the digest is the same (where the data lie)
    do not count; where the others do not tell all digests apart, the digests themselves do.
    """
    records, found = list(records), defaultdict(dict)
    for place, name in several_digests(records):
        here = [record for record in records if _digest(record, place)[0] == name]
        for record, fields in zip(here, _telling(here, place), strict=True):
            found[record.run_id] |= fields
    return dict(found)


PLACES = ("task", "model")


def _telling(records: list[RunRecord], place: str) -> list[dict[str, Any]]:
    """Return each record's fields of `place` that follow from its digest."""
    asked, digests = [_choices(record, place) for record in records], [_digest(record, place)[1] for record in records]
    keys = {key for fields in asked for key in fields}
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for fields, digest in zip(asked, digests, strict=True):
        for key in keys:
            seen[key, digest].add(canonical(fields.get(key)))
    keys -= {key for (key, _), values in seen.items() if len(values) > 1}
    told = [{key: value for key, value in fields.items() if key in keys} for fields in asked]
    if len({canonical(fields) for fields in told}) < len(set(digests)):
        told = [fields | {f"{place}.digest": digest[:8]} for fields, digest in zip(told, digests, strict=True)]
    return told


def _digest(record: RunRecord, place: str) -> tuple[str, str]:
    """Return name and digest of a record's task or model."""
    entry = record.identity.get(place) or getattr(record, place)
    return str(entry.get("name")), str(entry.get("digest"))


def _choices(record: RunRecord, place: str) -> dict[str, Any]:
    """Return the fields of a record's task or model, `task.n_train` and the like."""
    found = flatten({place: record.config.get(place)})
    return {key: value for key, value in found.items() if key not in (place, f"{place}.name") and value is not None}
