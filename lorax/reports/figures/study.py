"""All figures of one study, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lorax.records import RunRecord
from lorax.reports.figures.diagnostics import diagnostics, diagnostics_frame
from lorax.reports.figures.factor_maps import factor_map
from lorax.reports.figures.learning_rates import response, selection, winner_flip
from lorax.reports.figures.runs import agreement, agreement_map, price, training
from lorax.reports.figures.style import save
from lorax.reports.frames.factor_lines import Line, factor_lines
from lorax.reports.frames.items import Scores
from lorax.reports.frames.learning_rates import selection as resample
from lorax.stats.selection import Trial
from lorax.studies.study import Study

MOST_ARMS = 16
"""Eight colours, each with two markers and line styles."""

CAPTIONS = {
    "learning_rate": "Validation score against learning rate: mean over tuning seeds, band from lowest to highest.",
    "screening": "Validation score against learning rate in the short screening before the full-length tuning.",
    "winner_flip": "Who leads when every arm is given the same rate: what a paper that fixed it would have seen.",
    "selection": "How often resampled tuning runs would have selected each learning rate.",
    "training": "Training loss of the final runs, smoothed; steps to the loss that every run reaches.",
    "price": "Test score, 95 % interval over seeds, against trained parameters and wall-clock of one solo run.",
    "agreement": "Items on which two runs of different seeds agree; the diagonal is what retraining alone does.",
    "factors_score": "Test score over alpha, zeta and gamma: a curve a rank through the means, a dot a run.",
    "factors_cosine": "Alignment of the first SGD step with the full gradient over alpha, zeta and gamma.",
    "diagnostics": "What training did to the weights: a dot a run, a bar at the mean.",
}


def draw_all(study: Study, scores: Scores, table: pd.DataFrame) -> dict[str, Figure]:
    """Return every figure that the study's records can fill, by file name.

    Args:
        study: from `protocol_study.read_study`.
        scores: per-item scores, from `report_items.item_scores`.
        table: from `main_table.main_table`.
    """
    # Arms that train come first, so that the frozen base takes no colour away from them.
    labels = [arm.label for arm in sorted(study.spec.arms, key=lambda arm: not arm.trained)]
    frame = tuning_frame(study)
    lines = factors(study)
    found = {
        "learning_rate": response(frame, _chosen(study), base_scores(study), labels),
        "screening": response(tuning_frame(study, study.screened), _chosen(study), arms=labels),
        "winner_flip": winner_flip(frame, study.spec.reference, labels),
        "selection": selection(frequencies(study), labels),
        **({} if left_out(study) else _arm_by_arm(study, scores, table, labels)),
        **{f"factors_{quantity}": factor_map(lines, quantity) for quantity in ("score", "cosine")},
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def left_out(study: Study) -> list[str]:
    """Return why the figures with a curve, a point or a line for each arm are not drawn; empty where they are."""
    arms = len(study.spec.arms)
    if arms <= MOST_ARMS:
        return []
    return [
        f"Training curves, price, agreement and diagnostics arm by arm are left out: {arms} arms, and no more than "
        f"{MOST_ARMS} can be told apart. The tables hold them all."
    ]


def _arm_by_arm(study: Study, scores: Scores, table: pd.DataFrame, labels: list[str]) -> dict[str, Figure | None]:
    finals = by_arm(study)
    found = {
        "training": training({arm: finals[arm] for arm in labels if arm in finals}, labels),
        "price": price(_costs(table, study), labels),
        "agreement": agreement_map({
            task: agreement({arm: list(runs.values()) for arm in labels if (runs := arms.get(arm))})
            for task, arms in scores.items()
        }),
    }  # fmt: skip
    measured = diagnostics_frame(finals)
    for task in study.spec.tasks:
        name = "diagnostics" if len(study.spec.tasks) == 1 else f"diagnostics_{task}"
        found[name] = diagnostics(measured[measured["task"] == task], labels)
    return found


def save_all(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG, take away what an earlier call drew and this one did not; return the paths."""
    paths = [path for name, figure in figures.items() for path in save(figure, folder, name)]
    for old in {*folder.glob("*.png"), *folder.glob("*.svg")} - {*paths}:
        old.unlink()
    return paths


def caption(name: str) -> str:
    """Return what a figure shows, by its file name."""
    key = next(key for key in CAPTIONS if name.startswith(key))
    about = name.removeprefix(key).strip("_")
    return f"{about}: {CAPTIONS[key]}" if about else CAPTIONS[key]


def by_arm(study: Study) -> dict[str, list[RunRecord]]:
    """Return arm -> its final records over all tasks."""
    found: dict[str, list[RunRecord]] = {}
    for (_, arm), runs in study.finals.items():
        found.setdefault(arm, []).extend(runs.values())
    return {arm: records for arm, records in found.items() if records}


def factors(study: Study) -> dict[str, list[Line]]:
    """Return task -> the lines that its arms form over alpha, zeta and gamma."""
    return {
        task: factor_lines(
            [run for (where, _), runs in study.finals.items() if where == task for run in runs.values()],
            study.spec.metric,
        )
        for task in study.spec.tasks
    }


def tuning_frame(study: Study, trials: Sequence[Trial] | None = None) -> pd.DataFrame:
    """Return the tuning runs (or others) as arm, task, lr, seed, score; null score where the run diverged."""
    order = {arm: place for place, arm in enumerate(study.spec.labels)}
    runs = study.trials if trials is None else trials
    lines = [
        {"arm": trial.arm, "task": trial.task, "lr": trial.lr, "seed": trial.seed,
         "score": trial.score if math.isfinite(trial.score) else None}
        for trial in sorted(runs, key=lambda trial: (order.get(trial.arm, 0), trial.lr, trial.seed))
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["arm", "task", "lr", "seed", "score"]).astype({"score": float})


def base_scores(study: Study) -> dict[str, float]:
    """Return task -> validation score of the untouched model, where any record has it."""
    found = {}
    for records in (trial.record for trial in study.trials), *map(dict.values, study.finals.values()):
        for record in records:
            score = record.score("base_validation", study.spec.metric)
            if score is not None:
                found.setdefault(str(record.task.get("name")), score)
    return found


def frequencies(study: Study) -> dict[tuple[str, str], dict[float, float]]:
    """Return (arm, task) -> {rate: share of resamples of the tuning runs that select it}."""
    found = {}
    for task, arm in study.choices:
        trials = [trial for trial in study.trials if (trial.task, trial.arm) == (task, arm)]
        if trials:
            items = trials[0].record.score("validation", "n") or study.spec.validation_items
            found[arm, task] = resample(trials, int(items)).frequency
    return found


def _chosen(study: Study) -> dict[tuple[str, str], float]:
    return {(arm, task): choice.lr for (task, arm), choice in study.choices.items() if choice.lr is not None}


def _costs(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Price of each row: seconds are those of initialisation plus a full run at the solo run's pace."""
    lines = []
    for line in table[table["mean"].notna()].to_dict("records"):
        runs = list(study.finals.get((line["task"], line["arm"]), {}).values())
        steps = runs[0].config.get("steps") if runs else None
        init, pace = line["init_seconds"], line["step_ms"]
        known = steps is not None and pd.notna(init) and pd.notna(pace)
        counts = [record.costs.get("trainable") for record in runs]
        lines.append({key: line[key] for key in ("arm", "task", "mean", "low", "high")} | {
            "parameters": float(counts[0]) if counts and counts[0] else None,
            "seconds": float(init + pace * steps / 1e3) if known else None,
        })  # fmt: skip
    return pd.DataFrame(lines, columns=["arm", "task", "mean", "low", "high", "parameters", "seconds"])
