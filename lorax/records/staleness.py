"""Which records are of today's data, models and code, and which tasks and models were asked for otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lorax.records import RunRecord, canonical
from lorax.records.fields import flatten, is_stamp, method, stamps, task

PLACES = ("task", "model")
_OF_A_RUN = {"name", "lr", "head_lr", "steps", "batch_size"}
"""Fields of a task that are a run's defaults: no data follow from them."""
_NOW = "~"
"""Sorts after every date."""


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
    records, wanted = list(records), list(wanted)
    asked = {} if wanted else {place: _asked(records, place) for place in PLACES}
    stamped = {record.run_id: _stamped(record, asked) for record in records}
    newest: dict[tuple, tuple[str, set]] = {}
    for identity in wanted:
        for place, value in _stamped_identity(identity).items():
            newest.setdefault(place, (_NOW, set()))[1].add(value)
    for record in sorted(records, key=lambda record: record.status == "failed"):  # what failed does not outdate
        when = _when(record) if record.status != "failed" else ""
        for place, value in stamped[record.run_id].items():
            if place not in newest or when > newest[place][0]:
                newest[place] = (when, {value})
    names: dict[tuple, set[str]] = defaultdict(set)
    for *scope, key in newest:
        names[tuple(scope)].add(key)
    stale = {}
    for record in records:
        own, scopes = stamped[record.run_id], _scopes(record, asked)
        wrong = {key[-1] for key, value in own.items() if value not in newest[key][1]}
        lacks = {
            key
            for scope in scopes
            for key in names[scope]
            if (*scope, key) not in own and newest[(*scope, key)][0] > _when(record)
        }
        reasons = [f"{word} {', '.join(sorted(keys))}" for word, keys in (("another", wrong), ("no", lacks)) if keys]
        if reasons:
            stale[record.run_id] = ", ".join(reasons)
    return [record for record in records if record.run_id not in stale], stale


def shown(records: Iterable[RunRecord]) -> tuple[list[RunRecord], list[RunRecord], dict[str, str], str]:
    """Return the records that a table of a sweep holds, those it leaves out, the stale ones, and its split.

    The split is `test` where any run has a test score; runs for validation alone are then left out.
    """
    kept, stale = fresh(records)
    split = "test" if any(record.score("test") is not None for record in kept) else "validation"
    out = [record for record in kept if _elsewhere(record, split)]
    left = {record.run_id for record in out}
    return [record for record in kept if record.run_id not in left], out, stale, split


def _elsewhere(record: RunRecord, split: str) -> bool:
    if record.status == "failed":
        return split == "test" and record.config.get("evaluate") == "validation"
    return record.score(split) is None and record.score("validation") is not None


def _when(record: RunRecord) -> str:
    return str(record.provenance.get("finished") or "")


def _place(record: RunRecord) -> tuple:
    return task(record), str(record.model.get("name")), record.config.get("data_seed")


def _scopes(record: RunRecord, asked: Mapping[str, Mapping[str, str]]) -> list[tuple]:
    """Return where stamps that a record must agree with stand: for all methods, its own, its task's and its model's."""
    own = [asked[place][record.run_id] for place in PLACES] if asked else []
    return [(*_place(record), init, one) for init in ("", method(record)) for one in ("", *own)]


def _stamped(record: RunRecord, asked: Mapping[str, Mapping[str, str]]) -> dict[tuple, Any]:
    """Return (scope..., key) -> value: data and model stamps hold for all methods, others for one."""
    own = {f"{place}.digest": asked[place][record.run_id] for place in PLACES} if asked else {}
    return _scoped(_place(record), method(record), stamps(record), own)


def _stamped_identity(identity: Mapping[str, Any]) -> dict[tuple, Any]:
    """The same of a run that has not been made yet."""
    name, model, init = (str(identity.get(key, {}).get("name")) for key in ("task", "model", "init"))
    found = {key: value for key, value in flatten(dict(identity)).items() if is_stamp(key)}
    return _scoped((name, model, identity.get("data_seed")), init, found, {})


def _scoped(place: tuple, init: str, found: Mapping[str, Any], own: Mapping[str, str]) -> dict[tuple, Any]:
    shared = ("task", "model", "data", "versions")
    known = {key: value for key, value in found.items() if value is not None}
    return {
        (*place, "" if key.startswith(shared) else init, own.get(key, ""), key): value for key, value in known.items()
    }


def _asked(records: list[RunRecord], place: str) -> dict[str, str]:
    """Return run id -> what was asked of its task or model, by the fields that all records of that name hold.

    A field that older records lack was not asked for: it came with newer code.
    """
    by: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by[_digest(record, place)[0]].append(record)
    found = {}
    for here in by.values():
        fields = [entry if isinstance(entry := record.config.get(place), dict) else {} for record in here]
        common = set.intersection(*(set(one) for one in fields)) - _OF_A_RUN
        for record, one in zip(here, fields, strict=True):
            found[record.run_id] = f"{place} " + canonical({key: one[key] for key in common})
    return found


def several_digests(records: Iterable[RunRecord]) -> set[tuple[str, str]]:
    """Return ("task" or "model", its name) wherever the records hold more than one digest.

    These differ in a field of the task or of the model, as a grid over `task.n_train` makes them:
    `fresh` has left out those that differ in age alone.
    """
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        for place in PLACES:
            name, digest = _digest(record, place)
            found[place, name] |= {digest} - {None}
    return {one for one, digests in found.items() if len(digests) > 1}


def variants(records: Iterable[RunRecord]) -> dict[str, dict[str, Any]]:
    """Return run id -> the fields of its task and model that tell it from others of the same name.

    Nothing where there is one digest. Fields that differ while the digest is the same (where the data lie)
    do not count; where the others do not tell all digests apart, the digests themselves do.
    """
    records = list(records)
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for place, name in sorted(several_digests(records)):
        here = [record for record in records if _digest(record, place)[0] == name]
        for record, fields in zip(here, _telling(here, place), strict=True):
            found[record.run_id] |= fields
    return dict(found)


def _telling(records: list[RunRecord], place: str) -> list[dict[str, Any]]:
    """Return each record's fields of `place` that follow from its digest."""
    # The data seed is a field of the run, yet its data follow from it.
    asked = [_choices(record, place) | {"data_seed": record.config.get("data_seed")} for record in records]
    digests = [_digest(record, place)[1] for record in records]
    keys = {key for fields in asked for key in fields}
    seen: dict[tuple[str, str | None], set[str]] = defaultdict(set)
    for fields, digest in zip(asked, digests, strict=True):
        for key in keys:
            seen[key, digest].add(canonical(fields.get(key)))
    keys -= {key for (key, _), values in seen.items() if len(values) > 1}
    keys = {key for key in keys if len({canonical(fields.get(key)) for fields in asked}) > 1}
    told = [{key: value for key, value in fields.items() if key in keys} for fields in asked]
    if len({canonical(fields) for fields in told}) < len(set(digests) - {None}):
        told = [
            fields | ({f"{place}.digest": digest[:8]} if digest else {})
            for fields, digest in zip(told, digests, strict=True)
        ]
    return [{key: value for key, value in fields.items() if key != "data_seed"} for fields in told]


def _digest(record: RunRecord, place: str) -> tuple[str, str | None]:
    """Return name and digest of a record's task or model; None where it does not say."""
    entries = (record.identity.get(place), getattr(record, place))
    entries = [entry for entry in entries if isinstance(entry, dict)]
    name, digest = (next((e[key] for e in entries if e.get(key) is not None), None) for key in ("name", "digest"))
    return str(name), digest


def _choices(record: RunRecord, place: str) -> dict[str, Any]:
    """Return the fields of a record's task or model, `task.n_train` and the like."""
    found = flatten({place: record.config.get(place)})
    return {
        key: value
        for key, value in found.items()
        if key != place and key.removeprefix(f"{place}.") not in _OF_A_RUN and value is not None
    }
