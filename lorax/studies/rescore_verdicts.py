"""What a study would have concluded under another extraction rule."""

from __future__ import annotations

import pandas as pd

from lorax.studies.protocol_study import Study
from lorax.studies.verdicts import Final, judge


def verdict_changes(study: Study, table: pd.DataFrame) -> list[str]:
    """Judge the final runs again under each rule; return a line for each rule that changes a verdict.

    The learning rates stay those that the study's own score selected, and the paired t over seeds
    judges, which needs the rescored means only.

    Args:
        study: from `protocol_study.read_study`.
        table: from `rescore.rescored`: run_id, rule, score, n.
    """
    spec = study.spec
    where = {
        record.run_id: (arm, task, seed, record.status == "diverged")
        for (task, arm), runs in study.finals.items()
        for seed, record in runs.items()
    }
    if study.result is None:
        return []
    lines = []
    for rule, part in table[table["run_id"].isin(where)].groupby("rule", sort=False):
        finals = []
        for line in part.to_dict("records"):
            arm, task, seed, diverged = where[line["run_id"]]
            finals.append(Final(arm, task, seed, line["score"], line["n"], diverged))
        # A rule that finds no right answer anywhere would call everything equivalent.
        if part["score"].max() == 0 or not any(final.arm == spec.reference for final in finals):
            continue
        again = judge(
            finals, reference=spec.reference, margin=spec.margin, alpha=spec.alpha, arms=spec.labels, tasks=spec.tasks
        )
        changed = [
            f"{new.task} {new.arm} {new.verdict} instead of {old.verdict}"
            for old, new in zip(study.result.comparisons, again.comparisons, strict=True)
            if new.verdict != old.verdict
        ]
        if changed:
            lines.append(f"Judged by {rule}: {'; '.join(changed)}.")
    return lines or ["Every verdict of the study is the same under every rule that reads an answer."]
