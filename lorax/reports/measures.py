"""The parts of a report beside its verdicts: tables and sentences about improvement, recovered share, robustness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lorax.reports import over_tasks
from lorax.reports.columns import Column, table
from lorax.reports.frames import pareto, search_cost
from lorax.reports.frames.measures import (
    CONFIDENCE,
    DROP,
    Measured,
    base_and_full,
    improvements,
    plateaus,
    recovered_shares,
)
from lorax.reports.frames.sensitivity import sensitivity
from lorax.reports.frames.speed import goals, speeds
from lorax.reports.frames.study import prices
from lorax.reports.main_table import main_table
from lorax.reports.text import measures as text
from lorax.reports.text import numbers
from lorax.reports.text.document import Part, Table
from lorax.studies.study import Study
from lorax.studies.variations import VARIED_SEEDS


@dataclass(frozen=True)
class Row:
    """One arm on one task, and what was measured of it."""

    arm: str
    measured: Mapping[str, Measured]


@dataclass(frozen=True)
class Shown:
    """How one measure stands in a table."""

    measure: str
    head: str
    text: Callable[[Measured], str]


BESIDE = (
    Shown("improvement", "P(better run)", text.probability),
    Shown("recovered_share", "recovered, %", text.share),
    Shown("rate_decades", "decades of rates within a point", text.decades),
)


SPEED = (
    Shown("steps_to_loss", "steps to loss", text.steps),
    Shown("steps_to_loss_difference", "difference", text.steps),
    Shown("loss_at_half_steps_difference", "loss at half the steps, difference", text.loss),
    Shown("loss_at_all_steps_difference", "at all steps", text.loss),
    Shown("loss_at_equal_seconds_difference", "at equal seconds (steps of both)", text.seconds),
)


def beside(study: Study) -> list[Measured]:
    """Return the measures that need scores alone."""
    shares = improvements(study.result) if study.result else []
    return shares + recovered_shares(study) + plateaus(study)


def all_of(study: Study) -> list[Measured]:
    """Return every measure, for the CSV and the JSON file."""
    costs = pareto.measured(pareto.with_fronts(prices(study, main_table(study)), study.result))
    costs += sensitivity(study)
    costs += search_cost.measured(search_cost.search_costs(study))
    return beside(study) + speeds(study) + costs + (over_tasks.measured(study.result) if study.result else [])


def tables(study: Study, measured: Sequence[Measured], shown: Sequence[Shown]) -> list[Table]:
    """Return one table a task: an arm a row, a measure a column; measures that nothing was measured of are left out."""
    found = []
    for task in study.spec.tasks:
        of_task = [one for one in measured if one.task == task]
        rows = [Row(arm, {one.measure: one for one in of_task if one.arm == arm}) for arm in study.spec.labels]
        present = [one for one in shown if any(one.measure in row.measured for row in rows)]
        columns: list[Column[Row]] = [Column("", "arm", lambda row: row.arm), *(_column(one) for one in present)]
        if present:
            found.append(table(columns, [row for row in rows if row.measured], task))
    return found


def part(study: Study, measured: Sequence[Measured]) -> Part | None:
    """Return the part beside the verdicts, or None where nothing was measured."""
    kinds = {one.measure for one in measured}
    each = f"an interval at {100 * CONFIDENCE:g} % each, not corrected for their number"
    lines = [f"Descriptions at the rates of the table, {each}."]
    if study.spec.until_decided is not None:
        lines.append(
            "These intervals are made for a fixed number of seeds: an arm that stopped when it was decided looks "
            "further from the reference than it is."
        )
    if "improvement" in kinds:
        lines.append(
            f"P(better run): probability that a run of the arm scores higher than a run of {study.spec.reference}, "
            "each with a seed of its own, ties half (Agarwal et al. 2021; interval of Newcombe 2006). It says how "
            "often, not by how much."
        )
    ends = base_and_full(study)
    if "recovered_share" in kinds and ends:
        base, full = ends
        lines.append(
            f"recovered: (arm - {base}) / ({full} - {base}), over shared seeds, with Fieller's set. Where {full} is "
            f"not shown to differ from {base} it is no interval, and the table says which shares are left."
        )
    if "rate_decades" in kinds and study.spec.tuning:
        seeds = len(study.spec.tuning.seeds)
        lines.append(
            f"decades: width of the rates whose mean score on validation lies within {numbers.points(DROP)} points of "
            "the arm's best, straight lines between the rates that were tuned (0.5: a factor of 3.2); Tukey's "
            f"simultaneous intervals over {seeds} tuning seeds. ≥ or ∞: the set reaches the end of the grid."
        )
    shown = tables(study, measured, BESIDE)
    return Part("Beside the verdicts", lines, shown) if shown else None


def speed_part(study: Study, measured: Sequence[Measured]) -> Part | None:
    """Return the part about training loss against steps and seconds, or None where no curve was recorded."""
    shown = tables(study, measured, SPEED)
    if not shown:
        return None
    reference = study.spec.reference
    reached = ", ".join(f"{task}: {goal:.3g}" for task, goal in goals(study).items())
    lines = [
        f"Smoothed training loss at the rates of the table, differences from {reference} over shared seeds with their "
        f"t interval at {100 * CONFIDENCE:g} %, not corrected. Training loss is not the score: no verdict rests on it.",
        f"steps to loss: to the lowest loss that every run of {reference} reaches ({reached}), which favours "
        f"{reference}: by this choice it always arrives. A run that never gets there counts all its steps, so that the "
        "mean is a restricted one (Royston and Parmar 2013): where some never arrive, it is too low.",
    ]
    if any(one.measure == "loss_at_equal_seconds_difference" for one in measured):
        lines.append(
            "at equal seconds: both are read when the faster of the two has ended (in brackets the step of the arm and "
            f"of {reference}), supposing that seconds are initialisation plus steps at the pace of the solo probes, "
            "one an arm, whose own error no interval here holds. Rates follow a schedule made for all steps, so the "
            "slower arm is read before its rate has fallen."
        )
    costs = prices(study, main_table(study))
    lines += [line for task in study.spec.tasks if (line := pareto.memory(costs, task, reference))]
    return Part("Training loss against steps and time", lines, shown)


def sensitivity_part(study: Study) -> Part | None:
    """Return the block of runs around the design, or None where the study asks for none or none has run yet."""
    found = sensitivity(study)
    names = list(dict.fromkeys(one.measure for one in found))
    if len(names) < 2:
        return None
    shown = [Shown(name, name.removeprefix("at "), text.points) for name in names]
    seeds = min(len(study.spec.seeds), VARIED_SEEDS)
    lines = [
        f"Differences from {study.spec.reference} at the same value, in points, with their paired t interval at "
        f"{100 * CONFIDENCE:g} %, not corrected, over the first {seeds} final seeds; no verdict "
        "rests on them. One setting is changed at a time.",
        "Every arm keeps the rate that was selected at the design: nothing is tuned again, so that an arm that would "
        "need another rate there looks worse than it is. An arm that sets a setting itself has no value there.",
    ]
    if "rank" in study.spec.sensitivity:
        lines.append("An alpha that is given as a number stays, so that alpha / rank changes with the rank.")
    return Part("Sensitivity around the design", lines, tables(study, found, shown))


def search_part(study: Study) -> Part | None:
    """Return what the search of each arm cost, or None before any run."""
    costs = search_cost.search_costs(study)
    if not any(cost.steps or cost.final for cost in costs):
        return None
    searched = "the learning rate alone was searched" if study.spec.tuning else "nothing was searched"
    lines = [
        f"On one budget for all arms {searched}; rank, alpha, targets and steps were fixed by the design, for all arms "
        "alike unless the list of asymmetries names them. A run that stands for two arms counts for both.",
    ]
    if any(cost.other for cost in costs):
        lines.append(
            "other records: under the arm's label, asked for by no job of this study; no row uses them, and no other "
            "column of this table counts them."
        )
    if study.varied:
        lines.append("Runs around the design (sensitivity) search nothing and are not counted here.")
    shown = []
    for task in study.spec.tasks:
        of_task = [cost for cost in costs if cost.task == task]
        shown.append(table(search_cost.columns(costs), of_task, task))
    return Part("Search cost of each arm", lines, shown)


def _column(one: Shown) -> Column[Row]:
    return Column(
        "",
        one.head,
        lambda row: row.measured.get(one.measure),
        lambda value: numbers.NOTHING if value is None else one.text(value),
    )
