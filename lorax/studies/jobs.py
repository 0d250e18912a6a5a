"""Jobs of a study as Hydra overrides, and which record answers which job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lorax.records import RunRecord, canonical
from lorax.records.fields import learning_rate, settings
from lorax.records.fields import task as task_of
from lorax.studies.spec import StudySpec

_COMPARED_SINGLY = {"lr", "seed", "evaluate", "task", "model", "steps"}
"""Fields that `answers` compares one by one: the job sets them, or the identity holds digests of them."""


@dataclass(frozen=True)
class Job:
    """One run to be done."""

    arm: str
    task: str
    stage: str
    """cost | screen | tune | final | vary."""
    lr: float | None
    """None: the arm does not train, or the study does not tune."""
    seed: int
    settings: dict[str, Any]
    """Overrides as a mapping, key -> value."""
    consumes: dict[str, Any] | None = None
    """Fields that the run consumes, from `plan.bind`; None: the record's label decides which job it answers."""

    @property
    def overrides(self) -> list[str]:
        """Return Hydra's override strings."""
        return [f"{key}={_text(value)}" for key, value in self.settings.items()]


Variation = tuple[str, Any]
"""A setting and a value of it, around the design."""


def make_job(
    spec: StudySpec, arm: str, task: str, stage: str, lr: float | None, seed: int, vary: Variation | None = None
) -> Job:
    """Build the job of one arm, task, learning rate and seed.

    Settings of all jobs come first, then those of the task, the arm, the matched field and the stage; the
    later one wins.
    """
    settings: dict[str, Any] = {"init": spec.arm(arm).init, "task": task, "model": spec.model}
    settings |= spec.fixed | spec.per_task.get(task, {}) | spec.arm(arm).overrides | spec.matched.get(arm, {})
    settings |= {
        "lr": lr,
        "seed": seed,
        "evaluate": _splits(spec, arm, stage),
        "base": False,
    }
    if stage == "cost" and spec.costs:
        settings |= {"steps": spec.costs.steps, "cache": "off"}
    if stage == "screen" and spec.tuning and spec.tuning.halving:
        settings |= {"steps": spec.tuning.halving.steps}
    settings |= dict([vary]) if vary else {}
    settings |= {"name": spec.name, "label": arm, "tag": f"{spec.name}.{stage}"}
    return Job(arm, task, stage, lr, seed, settings, spec.consumes.get(consumed(arm, task, vary)))


def consumed(arm: str, task: str, vary: Variation | None = None) -> str:
    """Return the key of `StudySpec.consumes` for the runs of an arm, at the design or beside it."""
    return f"{task}/{arm}" if vary is None else f"{task}/{arm}/{vary[0]}={canonical(vary[1])}"


def _splits(spec: StudySpec, arm: str, stage: str) -> str:
    """Return what a job is scored on; final runs of several rates are scored on validation too, which picks one."""
    if stage not in ("final", "vary"):
        return "validation"
    return "both" if spec.estimand == "method" and spec.arm(arm).trained else "test"


def answers(record: RunRecord, job: Job) -> bool:
    """Return whether a record is the run that a job asks for.

    Compared by what the run consumed, so that one run answers two arms that ask for the same; in a
    study that was never bound, by label.
    """
    identity, used, wanted = record.identity, settings(record), job.consumes or {}
    lr = wanted.get("lr") if job.lr is None else job.lr  # an untuned arm asks for its default rate, not for any
    for key, value in (
        ("seed", job.seed),
        ("evaluate", job.settings["evaluate"]),
        ("steps", job.settings.get("steps") or wanted.get("steps")),
    ):
        if value is not None and used.get(key) not in (None, value):
            return False
    rate = learning_rate(record)
    if lr is not None and (rate is None or not math.isclose(rate, lr, rel_tol=1e-9)):
        return False
    if job.consumes is None:
        return record.label == job.arm and task_of(record) == job.task
    for key in ("task", "model"):  # by name and by digest: arms may differ in a field of the task or of the model
        parts = identity.get(key) or {}
        if any(canonical(parts.get(part)) != canonical(value) for part, value in wanted.get(key, {}).items()):
            return False
    # None or `auto` at the top level is resolved when the run is made; inside a mapping None is a value.
    others = [
        (key, value) for key, value in wanted.items() if key not in _COMPARED_SINGLY and value not in (None, "auto")
    ]
    extra = (
        identity.keys() - wanted.keys() - _COMPARED_SINGLY
    )  # the run consumed something that the job does not ask for
    return not extra and all(canonical(identity.get(key)) == canonical(value) for key, value in others)


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
