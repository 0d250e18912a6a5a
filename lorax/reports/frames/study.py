"""What a study's figures and texts are made from, by task, arm and learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from lorax.records import RunRecord
from lorax.reports.frames.asymmetries import Asymmetry, lint
from lorax.reports.frames.factor_lines import Line, factor_lines
from lorax.reports.frames.learning_rates import Selection, selection
from lorax.stats.selection import Trial
from lorax.studies.study import Study

COSTS = ("parameters", "seconds", "peak_mb", "examples")
"""What a row may cost, columns of `prices`."""


def final_runs(study: Study, task: str | None = None) -> list[RunRecord]:
    """Return all final records, or those of one task; a run that stands for two arms is there twice."""
    return [run for (where, _), runs in study.finals.items() if task in (None, where) for run in runs.values()]


def test_scored(study: Study) -> list[RunRecord]:
    """Return every record that was scored on test: final runs at every rate, runners-up and variations too."""
    windows = [runs for rates in study.windows.values() for runs in rates.values()]
    others = [runs for place, runs in study.finals.items() if place not in study.windows]
    beside = (*study.runners_up.values(), *study.varied.values())
    return [run for runs in (*others, *windows, *beside) for run in runs.values()]


def by_arm(study: Study) -> dict[str, list[RunRecord]]:
    """Return arm -> its final records over all tasks; arms without one are left out."""
    runs: dict[str, list[RunRecord]] = {}
    for (_, arm), by_seed in study.finals.items():
        runs.setdefault(arm, []).extend(by_seed.values())
    return {arm: records for arm, records in runs.items() if records}


def asymmetries(study: Study) -> list[Asymmetry]:
    """Return what differs between arms besides the method and its tuned rate."""
    runs = by_arm(study)
    trials: dict[str, int] = {}
    for (_, arm), choice in study.choices.items():
        if study.spec.arm(arm).trained and study.spec.tuning is not None:
            trials[arm] = max(choice.trials, trials.get(arm, 0))
    return lint({arm: runs[arm] for arm in study.spec.labels if arm in runs}, trials)


def factors(study: Study) -> dict[str, list[Line]]:
    """Return task -> the lines that its arms form over alpha, zeta and gamma."""
    return {task: factor_lines(final_runs(study, task), study.spec.metric) for task in study.spec.tasks}


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


def chosen_rates(study: Study) -> dict[tuple[str, str], float]:
    """Return (task, arm) -> the learning rate that tuning selected; the final runs of a window may pick another."""
    rates = {place: choice.lr if choice.pilot is None else choice.pilot for place, choice in study.choices.items()}
    return {place: rate for place, rate in rates.items() if rate is not None}


def selections(study: Study) -> dict[tuple[str, str], Selection]:
    """Return (task, arm) -> which rates resampled tuning runs would have chosen, where the arm was tuned."""
    trials: dict[tuple[str, str], list[Trial]] = {}
    for trial in study.trials:
        trials.setdefault((trial.task, trial.arm), []).append(trial)
    return {
        place: selection(runs, int(runs[0].record.score("validation", "n") or study.spec.validation_items))
        for place in study.choices
        if (runs := trials.get(place))
    }


def base_scores(study: Study) -> dict[str, float]:
    """Return task -> validation score of the untouched model, where any record has it."""
    scores: dict[str, float] = {}
    for record in [*(trial.record for trial in study.trials), *final_runs(study)]:
        score = record.score("base_validation", study.spec.metric)
        if score is not None:
            scores.setdefault(str(record.task.get("name")), score)
    return scores


def prices(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Return what each row cost: arm, task, mean, low, high (fractions), parameters, seconds, peak_mb, examples.

    Seconds are those of initialisation plus a full run at the solo run's pace; examples are steps times the batch
    (records hold no count of tokens); null where not measured.

    Args:
        study: from `studies.study.read_study`.
        table: from `main_table.main_table`.
    """
    lines = []
    for line in table[table["mean"].notna()].to_dict("records"):
        runs = list(study.finals.get((line["task"], line["arm"]), {}).values())
        steps, batch = (runs[0].config.get(key) if runs else None for key in ("steps", "batch_size"))
        init, pace = line["init_seconds"], line["step_ms"]
        known = steps is not None and pd.notna(init) and pd.notna(pace)
        counts = [record.costs.get("trainable") for record in runs]
        lines.append({key: line[key] for key in ("arm", "task", "mean", "low", "high")} | {
            "parameters": float(counts[0]) if counts and counts[0] else None,
            "seconds": float(init + pace * steps / 1e3) if known else None,
            "peak_mb": line["peak_mb"],
            "examples": float(steps * batch) if steps and batch else None,
        })  # fmt: skip
    return pd.DataFrame(lines, columns=["arm", "task", "mean", "low", "high", *COSTS]).astype(
        dict.fromkeys(COSTS, float)
    )
