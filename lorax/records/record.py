"""RunRecord: everything that is kept about one run, as one JSON object."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lorax.errors import UserError

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
    """name, kind, metric, direction, majority, n_train, n_validation, n_test, digest, version."""
    model: dict[str, Any] = field(default_factory=dict)
    """name, digest, parameters, dtype, attention."""
    scores: dict[str, Any] = field(default_factory=dict)
    """`validation`, `test`, `base_validation`, `base_test`: {score, loss, n, tolerant, ...} or None."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """One entry a step: step, loss, lr, grad_norm."""
    init_report: dict[str, Any] = field(default_factory=dict)
    """eta (one number or a range), step0_error, n_layers, layers: {name: {...}}, base_lr, lr_prior, lr."""
    costs: dict[str, Any] = field(default_factory=dict)
    """trainable, head, total, share, init_seconds, train_seconds, eval_seconds, step_ms, peak_mb, bytes."""
    diagnostics: dict[str, Any] = field(default_factory=dict)
    """Optional measurements: alignment, captured energy, ||dW||/||W0||, forgetting, ..."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """commit, dirty, versions, device, threads, launcher, pack, overrides, started, finished."""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Return the record as indented JSON; non-finite numbers become null."""
        return json.dumps(_finite(asdict(self)), indent=1, sort_keys=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "record") -> RunRecord:
        """Read a record back.

        Raises:
            UserError: the text is no record, or of a newer schema; the line names `where`.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg}, line {error.lineno})") from None
        known = {item.name for item in fields(cls)}
        if not isinstance(data, dict) or not {"run_id", "status", "config", "identity"} <= data.keys():
            raise UserError(f"{where}: not a run record (run_id, status, config or identity is missing)")
        if data.get("schema", SCHEMA) > SCHEMA:
            raise UserError(f"{where}: schema {data['schema']}, this version reads up to {SCHEMA}")
        return cls(**{key: value for key, value in data.items() if key in known})

    def score(self, split: str = "test", key: str = "score") -> float | None:
        """Return one number of `scores[split]`, or None where it was not measured."""
        entry = self.scores.get(split)
        return None if entry is None else entry.get(key)


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
