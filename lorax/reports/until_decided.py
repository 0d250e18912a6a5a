"""What a report says of a study whose seeds were added until it was decided."""

from __future__ import annotations

from lorax.reports.text import numbers
from lorax.stats.result import Comparison, StudyResult
from lorax.studies.study import Study

METHOD = (
    "Verdicts compare methods, each at its best learning rate on the printed lattice: every seed ran every rate of an "
    "arm's window. An arm is better where one of the rates that it started with beats every rate of the reference (the "
    "number of those rates is paid for), worse likewise; validation picks the rates that are shown."
)
"""What verdicts are about under estimand `method`."""


def protocol(study: Study) -> str:
    """Return the line on how verdicts come about, in place of that for a fixed number of seeds."""
    spec = study.spec
    return (
        f"Differences are to {spec.reference}, over shared seeds, with a look after every seed; an arm stops when it "
        f"is decided, {spec.reference} runs every seed. Interval, p and verdict hold at all looks together, corrected "
        f"over {spec.family} comparisons at {100 * spec.alpha:g} %: looking on, or stopping early, bends nothing, and "
        "no verdict is revoked. Other pairs are not tested, so that there are no letters; equivalence is not judged. "
        "An arm's own interval is a description, made for a fixed number of seeds."
    )


def undecided(result: StudyResult, c: Comparison, most: int) -> str:
    """Return the sentence on an undecided comparison: how far it has come, and that nothing is called equivalent.

    Args:
        result: the study's.
        c: one of its comparisons.
        most: seeds at the last look.
    """
    looks = result.courses[c.task, c.arm].looks if result.courses and (c.task, c.arm) in result.courses else ()
    after = (
        f"after {looks[-1].seeds} of at most {most} seeds"
        if looks
        else f"before its first look, of at most {most} seeds"
    )
    ends = f"[{numbers.points(c.low, True)}, {numbers.points(c.high, True)}]"
    line = f"{c.task}: {c.arm} against {c.reference} is undecided {after}: {numbers.points(c.estimate, True)} points, "
    line += f"interval {ends} at {100 * c.confidence:.3g} %, at all looks together."
    if c.refused:
        line += f" Not called equivalent: {c.refused}."
    return line + (f" {c.note[:1].upper()}{c.note[1:]}." if c.note else "")


def after(c: Comparison) -> str:
    """Return when a comparison was decided, to be put behind its interval; empty with a fixed number of seeds."""
    return f", decided after {c.decided_after} seeds" if c.decided_after else ""
