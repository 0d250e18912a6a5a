"""Jobs of a study as Hydra overrides, and which record answers which job."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorax.records import RunRecord, canonical
from lorax.studies.spec import StudySpec

_ELSEWHERE = {"lr", "seed", "evaluate", "task", "model", "steps"}
"""Fields that the job itself fixes, or that the record's identity holds as digests."""


@dataclass(frozen=True)
class Job:
    """One run to be done."""

    arm: str
    task: str
    stage: str
    """cost | screen | tune | final."""
    lr: float | None
    """None: the arm does not train, or the study does not tune."""
    seed: int
    settings: dict[str, Any]
    """Overrides as a mapping, key -> value."""
    consumes: dict[str, Any] | None = None
    """Fields that the run consumes, as `bind` found them; None: the record's label decides."""

    @property
    def overrides(self) -> list[str]:
        """Return Hydra's override strings."""
        return [f"{key}={_text(value)}" for key, value in self.settings.items()]


def make_job(spec: StudySpec, arm: str, task: str, stage: str, lr: float | None, seed: int) -> Job:
    """Build the job of one arm, task, learning rate and seed.

    Later settings win: all jobs, the task, the arm, what the solver matched, the stage.
    """
    settings: dict[str, Any] = {"init": spec.arm(arm).init, "task": task, "model": spec.model}
    settings |= spec.fixed | spec.per_task.get(task, {}) | spec.arm(arm).overrides | spec.matched.get(arm, {})
    settings |= {
        "lr": lr,
        "seed": seed,
        "evaluate": "test" if stage == "final" else "validation",
        "base": False,
    }
    if stage == "cost" and spec.costs:
        settings |= {"steps": spec.costs.steps, "cache": "off"}
    if stage == "screen" and spec.tuning and spec.tuning.halving:
        settings |= {"steps": spec.tuning.halving.steps}
    settings |= {"name": spec.name, "label": arm, "tag": f"{spec.name}.{stage}"}
    return Job(arm, task, stage, lr, seed, settings, spec.consumes.get(f"{task}/{arm}"))


def answers(record: RunRecord, job: Job) -> bool:
    """Return whether a record is the run that a job asks for.

    Compared by what the run consumed, so that a twin (two arms that mean the same run) answers
    both; in a study that was never bound, by label.
    """
    identity, wanted = record.identity, job.consumes or {}
    lr = wanted.get("lr") if job.lr is None else job.lr  # an untuned arm means its own default rate, not any
    for key, value in (
        ("seed", job.seed),
        ("evaluate", job.settings["evaluate"]),
        ("steps", job.settings.get("steps") or wanted.get("steps")),
    ):
        if value is not None and _get(record, key) not in (None, value):
            return False
    if lr is not None and not _near(_get(record, "lr"), lr):
        return False
    if job.consumes is None:
        return record.label == job.arm and _name(record, "task") == job.task
    for key in ("task", "model"):  # by name and by digest: arms may differ in a field of the task or of the model
        found = identity.get(key) or {}
        if any(canonical(found.get(part)) != canonical(value) for part, value in wanted.get(key, {}).items()):
            return False
    # A top-level None or `auto` was left to be resolved later; inside, None is a value like any other.
    others = [(key, value) for key, value in wanted.items() if key not in _ELSEWHERE and value not in (None, "auto")]
    more = identity.keys() - wanted.keys() - _ELSEWHERE  # a run that consumed something nobody asked for
    return not more and all(canonical(identity.get(key)) == canonical(value) for key, value in others)


def _get(record: RunRecord, key: str) -> Any:
    """A field as the run consumed it; None where it consumed none."""
    return record.identity.get(key) if "init" in record.identity else record.config.get(key)


def _name(record: RunRecord, key: str) -> Any:
    entry = record.config.get(key)
    return entry.get("name") if isinstance(entry, Mapping) else entry


def _near(found: Any, value: float) -> bool:
    return isinstance(found, int | float) and math.isclose(found, value, rel_tol=1e-9)


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(item) for item in value) + "]"
    if isinstance(value, str) and not value.replace("_", "").replace("-", "").replace(".", "").isalnum():
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)
