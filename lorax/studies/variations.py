"""Sensitivity: runs around the design, one setting at a time, at each arm's selected rate; a description.

Nothing is tuned again: a value at which an arm would need another rate shows that arm at its worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lorax.studies.jobs import Job, Variation, make_job
from lorax.studies.spec import StudySpec
from lorax.studies.tuning import Choice

VARIED_SEEDS = 5
"""The first so many final seeds run every variation."""


def variations(spec: StudySpec, arm: str) -> list[Variation]:
    """Return the settings and values that an arm runs beside the design: those that it does not set itself."""
    if not spec.arm(arm).trained:
        return []
    fixed: Mapping[str, Any] = spec.arm(arm).overrides | spec.matched.get(arm, {})
    match = spec.arm(arm).match
    return [
        (key, value)
        for key, values in spec.sensitivity.items()
        if key not in fixed and (match is None or key != match.key)
        for value in values
    ]


def vary_jobs(spec: StudySpec, choices: Iterable[Choice]) -> list[tuple[Variation, Job]]:
    """Return every variation with its job, at the chosen rates."""
    return [
        (vary, make_job(spec, choice.arm, choice.task, "vary", choice.lr, seed, vary))
        for choice in choices
        for vary in variations(spec, choice.arm)
        for seed in spec.seeds[:VARIED_SEEDS]
    ]
