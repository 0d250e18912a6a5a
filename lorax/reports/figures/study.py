"""All figures of one study, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lorax.reports import over_tasks
from lorax.reports.figures.courses import courses
from lorax.reports.figures.diagnostics import diagnostics
from lorax.reports.figures.factor_maps import factor_map
from lorax.reports.figures.forest import forest
from lorax.reports.figures.learning_rates import response, selection, winner_flip
from lorax.reports.figures.pareto import pareto
from lorax.reports.figures.ranks import rank_by_layer, score_by_rank
from lorax.reports.figures.runs import agreement_map, training
from lorax.reports.figures.style import save
from lorax.reports.frames.diagnostics import diagnostics_frame
from lorax.reports.frames.items import Scores
from lorax.reports.frames.pareto import with_fronts
from lorax.reports.frames.ranks import by_rank, ranks_of_layers
from lorax.reports.frames.runs import agreement
from lorax.reports.frames.speed import goals, speeds
from lorax.reports.frames.study import (
    base_scores,
    by_arm,
    chosen_rates,
    factors,
    final_runs,
    prices,
    selections,
    tuning_frame,
)
from lorax.reports.text import measures as text
from lorax.stats.estimands import ESTIMANDS
from lorax.stats.result import StudyResult
from lorax.studies.study import Study

MOST_ARMS = 16
"""Eight colours, each with two markers and line styles."""


@dataclass(frozen=True)
class Drawing:
    """One figure of a report."""

    name: str
    """Of its files."""
    caption: str
    """The sentence that says what it shows."""
    figure: Figure


def draw_all(study: Study, scores: Scores, table: pd.DataFrame) -> list[Drawing]:
    """Return every figure that the study's records can fill.

    Args:
        study: from `studies.study.read_study`.
        scores: per-item scores, from `frames.items.item_scores`.
        table: from `main_table.main_table`.
    """
    arms = _arms(study)
    runs, chosen, lines = tuning_frame(study), chosen_rates(study), factors(study)
    frequency = {place: resampled.frequency for place, resampled in selections(study).items()}
    figures = [
        (
            "forest",
            f"Difference from {study.spec.reference} with the interval that decided, the band of the margin, and the "
            f"verdict, {ESTIMANDS[study.spec.estimand]}.",
            forest(
                _with_all_tasks(study, table),
                study.spec.margin,
                study.spec.reference,
                study.spec.claim,
                study.spec.estimand,
            ),
        ),
        (
            "learning_rate",
            "Validation score against learning rate: mean over tuning seeds, band from lowest to highest.",
            response(runs, chosen, base_scores(study), arms),
        ),
        (
            "screening",
            "Validation score against learning rate in the short screening before the full-length tuning.",
            response(tuning_frame(study, study.screened), chosen, arms=arms),
        ),
        (
            "winner_flip",
            "Who leads when every arm is given the same rate: what a paper that fixed it would have seen.",
            winner_flip(runs, study.spec.reference, arms),
        ),
        (
            "selection",
            "How often resampled tuning runs would have selected each learning rate.",
            selection(frequency, arms),
        ),
        (
            "score_by_rank",
            "Test score against rank: dashed, one training cut to each rank after it; drawn through, one at each rank.",
            score_by_rank(by_rank(final_runs(study), "test", study.spec.metric)),
        ),
        (
            "rank_by_layer",
            "The rank that each layer has in the end, mean over final runs, where the method sets it.",
            rank_by_layer(ranks_of_layers(by_arm(study)), arms),
        ),
        *([] if left_out(study) or study.result is None else [_courses(study.result, arms)]),
        *([] if left_out(study) else _arm_by_arm(study, scores, table)),
        (
            "factors_score",
            "Test score over alpha, zeta and gamma: a curve a rank through the means, a dot a run.",
            factor_map(lines, "score"),
        ),
        (
            "factors_cosine",
            "Alignment of the first SGD step with the full gradient over alpha, zeta and gamma.",
            factor_map(lines, "cosine"),
        ),
    ]
    return [Drawing(name, caption, figure) for name, caption, figure in figures if figure is not None]


def _courses(result: StudyResult, arms: Sequence[str]) -> tuple[str, str, Figure | None]:
    return (
        "seeds",
        "What no look has rejected so far, arm minus reference, against the number of seeds; a dot where an arm was "
        "decided, dotted lines at the margin.",
        courses(result, arms),
    )


def _arm_by_arm(study: Study, scores: Scores, table: pd.DataFrame) -> list[tuple[str, str, Figure | None]]:
    """Return name, caption and figure where every arm has a mark of its own: no more than `MOST_ARMS` of them."""
    arms, finals = _arms(study), by_arm(study)
    agreements = {
        task: agreement({arm: list(runs.values()) for arm in arms if (runs := of_task.get(arm))})
        for task, of_task in scores.items()
    }
    measured, several = diagnostics_frame(finals), len(study.spec.tasks) > 1
    return [
        (
            "training",
            f"Training loss of the final runs, smoothed; steps to the lowest loss that every run of "
            f"{study.spec.reference} reaches, as the table has them.",
            training({arm: finals[arm] for arm in arms if arm in finals}, arms, goals(study), steps_of(study)),
        ),
        (
            "pareto",
            "Test score, 95 % interval over seeds, against trained parameters, wall-clock and peak memory of one solo "
            "run; filled: on the front of means, faint: a cheaper arm is shown to score higher. Arms "
            "of nearly the same cost are moved a little aside.",
            pareto(with_fronts(prices(study, table), study.result), arms),
        ),
        (
            "agreement",
            "Items on which two runs of different seeds agree; the diagonal is what retraining alone does.",
            agreement_map(agreements),
        ),
        *(
            (
                f"diagnostics_{task}" if several else "diagnostics",
                f"{f'{task}: ' if several else ''}What training did to the weights: a dot a run, a bar at the mean.",
                diagnostics(measured[measured["task"] == task], arms),
            )
            for task in study.spec.tasks
        ),
    ]


def steps_of(study: Study) -> dict[tuple[str, str], str]:
    """Return (task, arm) -> the steps to the loss of `goals`, in the table's words without the interval."""
    return {
        (one.task, one.arm): text.steps(one).partition(" ")[0]
        for one in speeds(study)
        if one.measure == "steps_to_loss"
    }


def left_out(study: Study) -> list[str]:
    """Return why the figures with a curve, a point or a line for each arm are not drawn; empty where they are."""
    arms = len(study.spec.arms)
    if arms <= MOST_ARMS:
        return []
    return [
        f"Training curves, score against cost, agreement and diagnostics arm by arm are left out: {arms} arms, and no "
        f"more than {MOST_ARMS} can be told apart. The tables hold them all."
    ]


def save_all(drawings: Sequence[Drawing], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG and delete other figures in the folder; return the paths."""
    paths = [path for drawn in drawings for path in save(drawn.figure, folder, drawn.name)]
    for old in {*folder.glob("*.png"), *folder.glob("*.svg")} - {*paths}:
        old.unlink()
    return paths


def _with_all_tasks(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the table, and where a study has several tasks those over all of them."""
    shown = table[["task", "arm", "difference", "difference_low", "difference_high", "verdict", "verdict_words"]]
    if study.result is None or not study.result.across:
        return shown
    return pd.concat([shown, over_tasks.frame(study.result)[list(shown.columns)]], ignore_index=True)


def _arms(study: Study) -> list[str]:
    """Return the arms, those that train first, so that the frozen base takes no colour away from them."""
    return [arm.label for arm in sorted(study.spec.arms, key=lambda arm: not arm.trained)]
