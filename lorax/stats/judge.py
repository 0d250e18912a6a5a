"""From the final runs of a study to its arms, comparisons and letters.

The rule for verdicts is in `rule`, the intervals between methods in `best_rate`, where "equivalent" is refused in
`refusals`, the types of input and output in `result`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lorax.errors import UserError, near
from lorax.stats import courses as decided_courses
from lorax.stats import effects, power
from lorax.stats.across import over_all_tasks
from lorax.stats.anytime_design import anytime_design
from lorax.stats.comparisons import against_reference, all_pairs
from lorax.stats.courses import Course
from lorax.stats.estimands import ESTIMANDS
from lorax.stats.letters import compact_letters
from lorax.stats.pairing import Cells, Runs, cells_of, contrast
from lorax.stats.result import ArmResult, Comparison, Final, Pair, StudyResult
from lorax.stats.rule import CLAIMS

PROCEDURES = ("paired_t", "crossed")


def judge(
    finals: Sequence[Final],
    *,
    reference: str,
    margin: float,
    alpha: float = 0.05,
    procedure: str = "paired_t",
    estimand: str = "rate",
    claim: str = "difference",
    metric: str = "score",
    arms: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    courses: Mapping[tuple[str, str], Course] | None = None,
    most: int = 0,
) -> StudyResult:
    """Judge the final runs of a study.

    Args:
        finals: each (arm, task, seed) once; under estimand `method` each (arm, task, rate, seed).
        reference: the arm that the others are compared with.
        margin: differences smaller than this do not matter; in the unit of the scores.
        alpha: chance of any false verdict among all comparisons with the reference, and of any
            false separation among all pairs without it.
        procedure: `paired_t` (about this test set) or `crossed` (about new items of the same kind too).
        estimand: method | rate, see `estimands`.
        claim: difference | non_inferior, see `rule.CLAIMS`.
        metric: name of the score, for the result.
        arms: planned arms in display order; None: all that occur. Arms without runs still count
            in the family.
        tasks: planned tasks, likewise.
        courses: (task, arm) -> its looks, where seeds were added until it was decided; these decide, no pairs are
            tested and nothing is equivalent. None: the number of seeds was fixed.
        most: seeds at the last look, with `courses`.

    Returns:
        StudyResult: arms and comparisons in order tasks x arms.

    Raises:
        UserError: the reference has no final run, or one (arm, task, seed) occurs twice.
    """
    if estimand not in ESTIMANDS:
        raise UserError(f"estimand={estimand}: {near(estimand, ESTIMANDS)}")
    if procedure not in PROCEDURES:
        raise UserError(f"procedure={procedure}: {near(procedure, PROCEDURES)}")
    if claim not in CLAIMS:
        raise UserError(f"claim={claim}: {near(claim, CLAIMS)}")
    arms = list(arms or dict.fromkeys(final.arm for final in finals))
    tasks = list(tasks or dict.fromkeys(final.task for final in finals))
    cells = cells_of(finals, by_rate=estimand == "method")
    if not any((reference, task) in cells for task in tasks):
        raise UserError(f"the reference arm {reference!r} has no final run; {near(reference, arms)}")
    others = [arm for arm in arms if arm != reference]
    planned = [(task, arm) for task in tasks for arm in others]
    family = len(planned)
    contrasts = [contrast(cells, task, arm, reference, procedure) for task, arm in planned]
    rows = _rows(cells, tasks, arms, alpha)
    pairs: tuple[Pair, ...] = ()
    if courses is None:
        comparisons = against_reference(contrasts, reference, margin, alpha, family, claim)
        pairs = all_pairs(cells, tasks, arms, comparisons, alpha, procedure)
        lettered, design = _lettered(rows, pairs), _design(rows, comparisons, reference, family, margin, alpha, claim)
    else:
        of_all = [courses.get(place, Course()) for place in planned]
        verdicts = decided_courses.verdicts(of_all, alpha)
        found = against_reference(contrasts, reference, margin, alpha, family, verdicts=verdicts)
        comparisons = tuple(_until_decided(c, course, margin) for c, course in zip(found, of_all, strict=True))
        lettered = tuple(rows)
        design = _anytime(_design(rows, comparisons, reference, family, margin, alpha), of_all, most)
    return StudyResult(
        reference=reference,
        metric=metric,
        margin=margin,
        alpha=alpha,
        procedure=procedure,
        arms=lettered,
        comparisons=comparisons,
        pairs=pairs,
        design=design,
        notes=_notes(rows, comparisons if courses is None else ()),
        estimand=estimand,
        claim=claim,
        courses=courses,
        across=over_all_tasks(cells, tasks, arms, reference, margin, alpha, claim, procedure)
        if courses is None
        else (),
    )


def would_need(result: StudyResult, comparison: Comparison, most: int = 200) -> power.Need:
    """Return how many seeds, or how many test items, would decide an undecided comparison.

    It supposes that estimate and spread stay as they are. More items reduce only the part of the
    spread that comes from items (`item_noise`).

    Args:
        result: the study's.
        comparison: one of its comparisons.
        most: up to so many seeds, and so many times the present items, are tried.
    """
    if (
        result.courses is not None
        or comparison.verdict != "undecided"
        or comparison.refused
        or not np.isfinite(comparison.spread)
    ):
        return power.Need(None, None, None)
    return power.need(
        comparison.estimate,
        comparison.spread,
        len(comparison.seeds),
        comparison.n_items,
        result.alpha / max(result.design.family, 1),
        result.margin,
        comparison.item_noise,
        most,
        result.claim,
    )


def _until_decided(c: Comparison, course: Course, margin: float) -> Comparison:
    """Return a comparison as its course has it: no fixed-seed p of sign flips, no detectable effect, no equivalence."""
    inside = c.verdict == "undecided" and -margin < c.low <= c.high < margin
    refused = "equivalence needs a number of seeds that was fixed before" if inside else ""
    return replace(
        c, decided_after=course.decided_after, p_flip=float("nan"), mde=float("inf"), refused=refused,
        low=min(c.low, c.estimate) if c.seeds else c.low, high=max(c.high, c.estimate) if c.seeds else c.high,
    )  # fmt: skip


def _anytime(fixed: power.Design, courses: Sequence[Course], most: int) -> power.Design:
    rates = [int(side.sum()) for course in courses for look in course.looks[:1] for side in look.fixed] or [1]
    return anytime_design(
        family=fixed.family, most=most, n_items=fixed.n_items, sd=fixed.sd, margin=fixed.margin, alpha=fixed.alpha,
        rates=max(rates), fewest=min(rates), room=fixed.room,
    )  # fmt: skip


def _rows(cells: Cells, tasks: Sequence[str], arms: Sequence[str], alpha: float) -> list[ArmResult]:
    return [
        _row(arm, task, cells[arm, task], alpha)
        for task in tasks
        for arm in arms
        if (arm, task) in cells and cells[arm, task].at_best
    ]


def _row(arm: str, task: str, runs: Runs, alpha: float) -> ArmResult:
    scores = {seed: run.score for seed, run in runs.at_best.items()}
    n_items = min(run.n_items for run in runs.at_best.values())
    resolution = 1 / n_items if n_items else 0.0
    mean, sd, low, high = effects.mean_interval(list(scores.values()), 1 - alpha, resolution)
    rates: dict[float, float] = {}
    for rate, of_rate in zip(runs.rates, runs.by_rate, strict=True):
        if rate is not None and of_rate:
            at_rate = effects.mean_interval([run.score for run in of_rate.values()], 1 - alpha, resolution)
            rates[rate], high = at_rate[0], max(high, at_rate[3])
    return ArmResult(
        arm,
        task,
        scores,
        mean,
        sd,
        low,
        float("inf") if runs.at_edge else high,
        len(scores),
        n_items,
        sum(run.diverged for run in runs.at_best.values()),
        lr=runs.rates[runs.best],
        rates=rates,
        at_edge=runs.at_edge,
    )


def _lettered(rows: Sequence[ArmResult], pairs: Sequence[Pair]) -> tuple[ArmResult, ...]:
    apart = {(pair.task, pair.first, pair.second) for pair in pairs if pair.separated}
    lettered = []
    for task in dict.fromkeys(row.task for row in rows):
        members = [row for row in rows if row.task == task]
        matrix = [[bool({(task, x.arm, y.arm), (task, y.arm, x.arm)} & apart) for y in members] for x in members]
        order = np.argsort([-row.mean for row in members], kind="stable")
        letters = compact_letters(np.array(matrix), order.tolist())
        lettered += [replace(row, letters=text) for row, text in zip(members, letters, strict=True)]
    return tuple(lettered)


def _design(
    rows: Sequence[ArmResult],
    comparisons: Sequence[Comparison],
    reference: str,
    family: int,
    margin: float,
    alpha: float,
    claim: str = "difference",
) -> power.Design:
    known = [c for c in comparisons if np.isfinite(c.spread)]
    sd = float("inf")
    if known:
        columns = [(c.spread / len(c.seeds) ** 0.5, len(c.seeds), c.df) for c in known]
        sd = float(power.typical_sd(*(np.array(column, dtype=float) for column in zip(*columns, strict=True))))
    base = [row.mean for row in rows if row.arm == reference]
    return power.design(
        family=family,
        n_seeds=min((len(c.seeds) for c in known), default=1),
        n_items=min((c.n_items for c in known), default=0),
        sd=sd,
        margin=margin,
        alpha=alpha,
        room=max((max(mean, 1 - mean) for mean in base), default=1.0),
        claim=claim,
    )


def _notes(rows: Sequence[ArmResult], comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    notes = [
        f"{row.task}: {row.diverged} of {row.n_seeds} final runs of {row.arm} diverged; their scores count"
        for row in rows
        if row.diverged
    ]
    most = max((len(c.seeds) for c in comparisons), default=0)
    notes += [
        f"{c.task}: {c.arm} has {len(c.seeds)} of {most} pairs with {c.reference}"
        for c in comparisons
        if len(c.seeds) < most
    ]
    return tuple(notes)
