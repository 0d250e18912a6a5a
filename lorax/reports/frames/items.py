"""Scores of final runs item by item, and two descriptions of them: McNemar's test and the bootstrap."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lorax.records import Store
from lorax.stats.effects import bootstrap, mcnemar
from lorax.studies.study import Study

Scores = dict[str, dict[str, dict[int | None, dict[str, float]]]]
"""task -> arm -> seed -> item -> score in 0..1."""


def item_scores(study: Study, store: Store) -> Scores:
    """Read the test items of every final run, in the study's metric; runs without items are left out."""
    scores: Scores = {}
    for (task, arm), runs in study.finals.items():
        for seed, record in runs.items():
            items = {
                str(item["id"]): float(item[study.spec.metric])
                for item in store.items(record)
                if item.get("split") == "test" and item.get(study.spec.metric) is not None
            }
            if items:
                scores.setdefault(task, {}).setdefault(arm, {})[seed] = items
    return scores


def descriptions(study: Study, scores: Scores) -> pd.DataFrame:
    """Describe each arm against the reference by items; no verdict rests on this.

    Columns: task, arm, low, high (95 % two-level bootstrap over seeds and items of the difference),
    pairs (seeds that both have), mcnemar (pairs of checkpoints with exact p < 5 %, uncorrected),
    gained and lost (items per seed, on average, that only the arm, only the reference solves), p_flip (of the
    comparison, see `stats.sign_flips`).

    Args:
        study: from `studies.study.read_study`.
        scores: from `item_scores`.
    """
    lines = []
    for task in study.spec.tasks:
        arms = scores.get(task, {})
        for arm in study.spec.labels:
            if arm == study.spec.reference or arm not in arms or study.spec.reference not in arms:
                continue
            pairs = _paired(arms[arm], arms[study.spec.reference])
            if pairs is None:
                continue
            first, second = pairs
            comparison = study.result.comparison(task, arm) if study.result else None
            tests = [mcnemar(a, b) for a, b in zip(first, second, strict=True)]
            low, high = bootstrap(first - second)
            lines.append({
                "task": task, "arm": arm, "low": low, "high": high, "pairs": len(tests),
                "mcnemar": sum(p < 0.05 for _, _, p in tests),
                "gained": float(np.mean([won for won, _, _ in tests])),
                "lost": float(np.mean([lost for _, lost, _ in tests])),
                "p_flip": comparison.p_flip if comparison else float("nan"),
            })  # fmt: skip
    return pd.DataFrame(lines, columns=["task", "arm", "low", "high", "pairs", "mcnemar", "gained", "lost", "p_flip"])


def _paired(
    arm: dict[int | None, dict[str, float]], reference: dict[int | None, dict[str, float]]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return both sides' scores (seeds, items) on shared seeds and items; a side without seeds meets every seed."""
    seeds = [seed for seed in arm if seed in reference or None in reference]
    if None in arm:
        seeds = list(reference)
    sides = [(arm[seed if seed in arm else None], reference[seed if seed in reference else None]) for seed in seeds]
    if not sides:
        return None
    shared = sorted(set.intersection(*(set(a) & set(b) for a, b in sides)))
    if len(shared) < 2:
        return None
    first, second = (np.array([[side[k][item] for item in shared] for side in sides]) for k in (0, 1))
    return first, second
