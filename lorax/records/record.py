"""RunRecord: everything that is kept about one run, as one JSON object."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lorax.records.guarded_json import Damaged, parse_json

SCHEMA = 1


def canonical(value: Any) -> str:
    """Return `value` as JSON with sorted keys, no spaces and whole floats written as integers.

    Two configurations that mean the same (16 and 16.0) have the same text, hence the same run id.

    Examples:
        >>> canonical({"b": 16.0, "a": [1, None]})
        '{"a":[1,null],"b":16}'
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_id(identity: dict[str, Any]) -> str:
    """Return the 16 hexadecimal digits that name a run: a digest of what the run consumes.

    Args:
        identity: resolved fields, data and model digests, component versions. Device, launcher, threads
            and the number of runs in its pack are provenance and stay out.

    Examples:
        >>> run_id({"rank": 8}) == run_id({"rank": 8.0})
        True
    """
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]


@dataclass
class RunRecord:
    """One run: what was asked for, what came out, what it cost and how it was made.

    What is missing is None. All numbers are plain floats or ints; the key names the unit (seconds, ms, bytes, mb).
    """

    run_id: str
    """Digest of `identity`."""
    name: str
    """The folder under `results/records`, named after a sweep or a study."""
    status: str
    """finished | diverged (the loss was no finite number; this counts as a result) | failed (see `error`)."""
    config: dict[str, Any]
    """The resolved configuration: init (a mapping with its name and fields), rank, lr, seed, ..."""
    identity: dict[str, Any]
    """What the run consumed; `run_id` is its digest."""
    error: str | None = None
    """The message of a failed or diverged run."""
    label: str = ""
    """The name of its row in tables, where the user or a study gave one; else empty."""
    task: dict[str, Any] = field(default_factory=dict)
    """name, kind, metric, direction, majority, n_train, n_validation, n_test, digest, version; asked: split -> digest
    of its prompts and expected answers (`Task.asked`); parts: of a run over several tasks, the facts of each."""
    model: dict[str, Any] = field(default_factory=dict)
    """name, digest, parameters, dtype, attention."""
    scores: dict[str, Any] = field(default_factory=dict)
    """`validation`, `test`, `base_validation`, `base_test`: {score, loss, n, tolerant, ...} or None. Of a run over
    several tasks they are means over tasks, and `tasks` has each one's."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """One entry a step: step, loss, lr, grad_norm."""
    init_report: dict[str, Any] = field(default_factory=dict)
    """eta (one number or a range), step0_error, n_layers, layers: {name: {...}}, base_lr, lr_prior, lr."""
    costs: dict[str, Any] = field(default_factory=dict)
    """trainable, head, total, share, init_seconds, train_seconds, eval_seconds, step_ms, peak_mb, bytes."""
    diagnostics: dict[str, Any] = field(default_factory=dict)
    """Optional measurements: alignment, captured energy, ||dW||/||W0||, forgetting, ..."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """commit, dirty, versions, device, processor, threads, launcher, pack, overrides, started, finished; in a study
    chain: the line of its chain that was the last one when the run began."""
    schema: int = SCHEMA
    items_digest: str | None = None
    """SHA-256 of the file of items beside the record; "" where there is none, None in older records."""

    def to_json(self) -> str:
        """Return the record as indented JSON, a digest of all of it last; non-finite numbers become null."""
        data = _finite(asdict(self))
        return json.dumps(data | {"digest": content_digest(data)}, indent=1, sort_keys=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "record") -> RunRecord:
        """Read a record back.

        Raises:
            Damaged: the text is no record, or of a newer schema, a field of it has the wrong type, or its content does
                not have its digest; the line names `where`. Records from before the digest have none.
        """
        data = parse_json(text, where)
        known = {item.name for item in fields(cls)}
        schema = data.get("schema", SCHEMA) if isinstance(data, dict) else SCHEMA
        if type(schema) is not int or schema > SCHEMA:
            raise Damaged(f"{where}: schema {str(schema)[:20]}, this version reads up to {SCHEMA}")
        if not isinstance(data, dict) or not {"run_id", "name", "status", "config", "identity"} <= data.keys():
            raise Damaged(f"{where}: not a run record (run_id, name, status, config or identity is missing)")
        digest = data.pop("digest", None)
        if digest is not None and digest != content_digest(data):
            raise Damaged(f"{where}: its content does not have its digest; it was changed after it was written")
        record = cls(**{key: value for key, value in data.items() if key in known})
        if wrong := next(iter(_wrong_types(record)), None):
            raise Damaged(f"{where}: {wrong}")
        return record

    def score(self, split: str = "test", key: str = "score", part: str | None = None) -> float | None:
        """Return one number of `scores[split]`, or None where it was not measured.

        Args:
            split: test, validation, base_test, ...
            key: score, loss, n, ...
            part: one of the tasks of a run over several; None: the run's own number.
        """
        entry = self.scores.get(split)
        if entry is not None and part is not None:
            entry = (entry.get("tasks") or {}).get(part)
        return None if entry is None else entry.get(key)


def digest_of(record: RunRecord) -> str:
    """Return the digest that a record's file holds, or would hold."""
    return content_digest(_finite(asdict(record)))


def content_digest(data: dict[str, Any]) -> str:
    """Return the SHA-256 of a record's JSON, without the digest itself."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


_TEXTS = ("run_id", "name", "status", "label")
_MAPPINGS = ("config", "identity", "task", "model", "scores", "init_report", "costs", "diagnostics", "provenance")
_NUMBERS = {
    "scores": ("score", "loss", "n", "tolerant"),
    "costs": ("trainable", "head", "total", "share", "init_seconds", "train_seconds", "eval_seconds", "step_ms",
              "peak_mb", "init_peak_mb", "bytes"),
}  # fmt: skip


def _wrong_types(record: RunRecord) -> Iterator[str]:
    """Yield a sentence for each field that has another type than tables compute with."""
    for kind, names in ((str, _TEXTS), (dict, _MAPPINGS)):
        for name in names:
            if not isinstance(getattr(record, name), kind):
                yield f"{name} is {_short(getattr(record, name))}, not {_TYPE_WORDS[kind]}"
                return
    if not (record.error is None or isinstance(record.error, str)):
        yield f"error is {_short(record.error)}, not a text"
    if not (isinstance(record.curve, list) and all(isinstance(row, dict) for row in record.curve)):
        yield f"curve is {_short(record.curve)}, not a list of steps"
    else:
        for row in record.curve:
            yield from _not_numbers("curve", row, row)
    for split, entry in record.scores.items():
        if not (entry is None or isinstance(entry, dict)):
            yield f"scores.{split} is {_short(entry)}, not a mapping"
        else:
            yield from _not_numbers(f"scores.{split}", entry or {}, _NUMBERS["scores"])
    yield from _not_numbers("costs", record.costs, _NUMBERS["costs"])
    for place, entry in (("task", record.task), ("model", record.model)):
        if not isinstance(entry.get("name", ""), str):
            yield f"{place}.name is {_short(entry['name'])}, not a text"


_TYPE_WORDS = {str: "a text", dict: "a mapping"}


def _not_numbers(place: str, entry: dict[str, Any], keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            yield f"{place}.{key} is {_short(value)}, not a number"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
