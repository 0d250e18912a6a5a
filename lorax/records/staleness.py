"""Which records were made with today's data, models and code, and which ran on a task or model set otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lorax.records import RunRecord, canonical
from lorax.records.fields import PLACES, entry, finished_at, flatten, is_stamp, method, stamps, task

Scope = tuple[Any, ...]
"""Runs that must agree: task, model, data seed, method ("" for all methods), settings of task or model ("" for any)."""
_RUN_DEFAULTS = {"name", "lr", "head_lr", "steps", "batch_size"}
"""Fields of a task that are defaults of a run: the data do not depend on them."""
_NOW = "~"
"""Sorts after every date."""


def fresh(
    records: Iterable[RunRecord], wanted: Iterable[Mapping[str, Any]] = ()
) -> tuple[list[RunRecord], dict[str, str]]:
    """Divide records into those of the newest digests and versions, and the stale ones.

    Two records of one method on one task and model must agree in every digest and version. Where they
    do not, those that agree with the run that finished last stay, and the others are stale. A task or
    a model with other settings (`task.n_train=100`) has its own digest and is compared apart.

    Args:
        records: of any age.
        wanted: identities of runs as they would be run now; where these hold digests and versions,
            they decide instead of the run that finished last.

    Returns:
        The fresh records in the given order, and run id -> reason for each stale one.
    """
    records, wanted = list(records), list(wanted)
    chosen = {} if wanted else {place: _settings_of(records, place) for place in PLACES}
    stamped = {record.run_id: _stamps_of_record(record, chosen) for record in records}
    newest: dict[Scope, tuple[str, set[Any]]] = {}
    for identity in wanted:
        for key, value in _stamps_of_identity(identity).items():
            newest.setdefault(key, (_NOW, set()))[1].add(value)
    for record in sorted(records, key=lambda record: record.status == "failed"):  # a failed run outdates nothing
        when = finished_at(record) if record.status != "failed" else ""
        for key, value in stamped[record.run_id].items():
            if key not in newest or when > newest[key][0]:
                newest[key] = (when, {value})
    names: dict[Scope, set[str]] = defaultdict(set)
    for *scope, name in newest:
        names[tuple(scope)].add(name)
    stale = {}
    for record in records:
        values = stamped[record.run_id]
        wrong = {key[-1] for key, value in values.items() if value not in newest[key][1]}
        lacking = {
            name
            for scope in _scopes(record, chosen)
            for name in names[scope]
            if (*scope, name) not in values and newest[(*scope, name)][0] > finished_at(record) and _reads(record, name)
        }
        reasons = [f"{word} {', '.join(sorted(keys))}" for word, keys in (("another", wrong), ("no", lacking)) if keys]
        if reasons:
            stale[record.run_id] = ", ".join(reasons)
    return [record for record in records if record.run_id not in stale], stale


def _reads(record: RunRecord, stamp: str) -> bool:
    """Return whether a run could hold a stamp: one of dropout masks needs dropout, one of rewards such an objective."""
    needed = {"masks.version": "dropout", "reinforce.version": "objective"}
    return stamp not in needed or bool(record.identity.get(needed[stamp]))


def shown(records: Iterable[RunRecord]) -> tuple[list[RunRecord], list[RunRecord], dict[str, str], str]:
    """Return the records that a sweep's table shows, those it leaves out, the stale ones, and its split.

    The split is `test` where any run has a test score; runs that were scored on validation only are then
    left out.
    """
    kept, stale = fresh(records)
    split = "test" if any(record.score("test") is not None for record in kept) else "validation"
    left_out = [record for record in kept if _scored_elsewhere(record, split)]
    ids = {record.run_id for record in left_out}
    return [record for record in kept if record.run_id not in ids], left_out, stale, split


def _scored_elsewhere(record: RunRecord, split: str) -> bool:
    if record.status == "failed":
        return split == "test" and record.config.get("evaluate") == "validation"
    return record.score(split) is None and record.score("validation") is not None


def _task_and_model(record: RunRecord) -> Scope:
    return task(record), str(record.model.get("name")), record.config.get("data_seed")


def _scopes(record: RunRecord, chosen: Mapping[str, Mapping[str, str]]) -> list[Scope]:
    """Return the scopes of a record: for all methods and for its method, each for any settings and for its settings."""
    settings = [chosen[place][record.run_id] for place in PLACES] if chosen else []
    return [(*_task_and_model(record), init, text) for init in ("", method(record)) for text in ("", *settings)]


def _stamps_of_record(record: RunRecord, chosen: Mapping[str, Mapping[str, str]]) -> dict[Scope, Any]:
    """Return (*scope, stamp) -> value for every digest and version of a record."""
    settings = {f"{place}.digest": chosen[place][record.run_id] for place in PLACES} if chosen else {}
    return _scoped(_task_and_model(record), method(record), stamps(record), settings)


def _stamps_of_identity(identity: Mapping[str, Any]) -> dict[Scope, Any]:
    """Return the same for a run that has not been made yet."""
    name, model, init = (str(identity.get(key, {}).get("name")) for key in ("task", "model", "init"))
    values = {key: value for key, value in flatten(identity).items() if is_stamp(key)}
    return _scoped((name, model, identity.get("data_seed")), init, values, {})


def _scoped(place: Scope, init: str, values: Mapping[str, Any], settings: Mapping[str, str]) -> dict[Scope, Any]:
    """Give each stamp its scope: those of data, model and shared code hold for all methods, others for one."""
    shared = ("task", "model", "data", "versions")
    return {
        (*place, "" if key.startswith(shared) else init, settings.get(key, ""), key): value
        for key, value in values.items()
        if value is not None
    }


def _settings_of(records: list[RunRecord], place: str) -> dict[str, str]:
    """Return run id -> the settings of its task or model, by the fields that all records of that name hold.

    A field that older records lack was not a setting then: it came with newer code.
    """
    by_name: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_name[_name_and_digest(record, place)[0]].append(record)
    texts = {}
    for same_name in by_name.values():
        fields = [value if isinstance(value := record.config.get(place), dict) else {} for record in same_name]
        common = set.intersection(*(set(one) for one in fields)) - _RUN_DEFAULTS
        for record, one in zip(same_name, fields, strict=True):
            texts[record.run_id] = f"{place} " + canonical({key: one[key] for key in common})
    return texts


def several_digests(records: Iterable[RunRecord]) -> set[tuple[str, str]]:
    """Return ("task" or "model", its name) wherever the records hold more than one digest.

    Of fresh records these differ in a field of the task or of the model, as in a grid over
    `task.n_train`: `fresh` has left out those that differ in age alone.
    """
    digests: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        for place in PLACES:
            name, digest = _name_and_digest(record, place)
            if digest is not None:
                digests[place, name].add(digest)
    return {key for key, values in digests.items() if len(values) > 1}


def variants(records: Iterable[RunRecord]) -> dict[str, dict[str, Any]]:
    """Return run id -> the fields of task and model that distinguish it from runs on the same task and model.

    Nothing where there is one digest. A field that differs while the digest is the same (the folder of the
    data) does not count. Where the other fields leave two digests alike, the digests themselves are added.
    """
    records = list(records)
    fields: dict[str, dict[str, Any]] = defaultdict(dict)
    for place, name in sorted(several_digests(records)):
        same_name = [record for record in records if _name_and_digest(record, place)[0] == name]
        for record, distinct in zip(same_name, _distinguishing(same_name, place), strict=True):
            fields[record.run_id] |= distinct
    return dict(fields)


def _distinguishing(records: list[RunRecord], place: str) -> list[dict[str, Any]]:
    """Return for each record the fields of `place` that decide its digest."""
    # The data seed is a field of the run, but the data depend on it.
    choices = [_choices(record, place) | {"data_seed": record.config.get("data_seed")} for record in records]
    digests = [_name_and_digest(record, place)[1] for record in records]
    keys = {key for fields in choices for key in fields}
    seen: dict[tuple[str, str | None], set[str]] = defaultdict(set)
    for fields, digest in zip(choices, digests, strict=True):
        for key in keys:
            seen[key, digest].add(canonical(fields.get(key)))
    keys -= {key for (key, _), values in seen.items() if len(values) > 1}
    keys = {key for key in keys if len({canonical(fields.get(key)) for fields in choices}) > 1}
    kept = [{key: value for key, value in fields.items() if key in keys} for fields in choices]
    if len({canonical(fields) for fields in kept}) < len(set(digests) - {None}):
        kept = [
            fields | ({f"{place}.digest": digest[:8]} if digest else {})
            for fields, digest in zip(kept, digests, strict=True)
        ]
    return [{key: value for key, value in fields.items() if key != "data_seed"} for fields in kept]


def _name_and_digest(record: RunRecord, place: str) -> tuple[str, str | None]:
    """Return name and digest of a record's task or model; the digest is None where the record has none."""
    sources = [source for source in (record.identity.get(place), entry(record, place)) if isinstance(source, dict)]
    name, digest = (next((s[key] for s in sources if s.get(key) is not None), None) for key in ("name", "digest"))
    return str(name), digest


def _choices(record: RunRecord, place: str) -> dict[str, Any]:
    """Return the fields of a record's task or model, `task.n_train` and the like."""
    return {
        key: value
        for key, value in flatten({place: record.config.get(place)}).items()
        if key != place and key.removeprefix(f"{place}.") not in _RUN_DEFAULTS and value is not None
    }
