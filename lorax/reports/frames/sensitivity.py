"""Differences from the reference around the design: one setting at a time, the same seeds, each arm at its one rate."""

from __future__ import annotations

from collections.abc import Mapping

from lorax.records import RunRecord
from lorax.reports.frames.measures import CONFIDENCE, Measured
from lorax.stats.effects import paired_t
from lorax.studies.study import Study, final_of
from lorax.studies.variations import VARIED_SEEDS

DESIGN = "as designed"


def sensitivity(study: Study) -> list[Measured]:
    """Return, for each arm and each value around the design, its difference from the reference at the same value.

    A setting that the reference sets itself has no difference. The measure's name is `at <setting>=<value>`; the one at
    the design, over the same seeds, `at as designed`.
    """
    lines = []
    seeds = study.spec.seeds[:VARIED_SEEDS]
    for task in study.spec.tasks if study.spec.sensitivity else ():
        runs: dict[str, dict[str, Mapping[int | None, RunRecord]]] = {
            arm: {DESIGN: study.finals.get((task, arm), {})} for arm in study.spec.labels
        }
        for (where, arm, (key, value)), varied in study.varied.items():
            if where == task:
                runs[arm][f"{key}={value}"] = varied
        reference = runs[study.spec.reference]
        for arm, settings in runs.items():
            for name, by_seed in settings.items():
                shared = [s for s in seeds if s in by_seed and s in reference.get(name, {})]
                if arm != study.spec.reference and shared:
                    pair = (_scores(study, task, of, by, shared)
                            for of, by in ((arm, by_seed), (study.spec.reference, reference[name])))  # fmt: skip
                    lines.append(_difference(task, arm, name, *pair))
    return lines


def _scores(
    study: Study, task: str, arm: str, by_seed: Mapping[int | None, RunRecord], seeds: list[int]
) -> list[tuple[float, int]]:
    finals = [final_of(by_seed[seed], arm, task, seed, study.spec.metric) for seed in seeds]
    return [(final.score, final.n_items) for final in finals]


def _difference(
    task: str, arm: str, name: str, ours: list[tuple[float, int]], theirs: list[tuple[float, int]]
) -> Measured:
    items = min(n for _, n in ours + theirs)
    effect = paired_t([a - b for (a, _), (b, _) in zip(ours, theirs, strict=True)], 1 / items if items else 0.0)
    low, high = effect.interval(CONFIDENCE)
    return Measured(task, arm, f"at {name}", float(effect.estimate), float(low), float(high), CONFIDENCE, "fraction",
                    f"{len(ours)} seeds")  # fmt: skip
