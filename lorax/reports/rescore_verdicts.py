"""What a study would have concluded under another extraction rule."""

from __future__ import annotations

import pandas as pd

from lorax.stats.judge import Final, judge
from lorax.studies.study import Study


def verdict_changes(study: Study, table: pd.DataFrame) -> list[str]:
    """Judge the final runs again under each rule; return a line for each rule that changes a verdict.

    The learning rates stay those that the study's own score selected, and the paired t over seeds
    judges, which needs the rescored means only.

    Args:
        study: from `protocol_study.read_study`.
        table: from `rescore.rescored`: row (the arm), run_id, rule, score, n.
    """
    spec = study.spec
    where = {  # one run may stand for two arms (twins), so the arm is part of the key
        (arm, record.run_id): (task, seed, record.status == "diverged")
        for (task, arm), runs in study.finals.items()
        for seed, record in runs.items()
    }
    if study.result is None:
        return []
    lines, judged = [], 0
    for rule, part in table.groupby("rule", sort=False):
        finals = []
        for line in part.to_dict("records"):
            if (line["row"], line["run_id"]) in where:
                task, seed, diverged = where[line["row"], line["run_id"]]
                finals.append(Final(line["row"], task, seed, line["score"], line["n"], diverged))
        # A rule that finds no right answer anywhere would call everything equivalent.
        if part["score"].max() == 0 or not any(final.arm == spec.reference for final in finals):
            continue
        judged += 1
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
    if not judged:
        return [f"No verdict was judged again: no rule finds a right answer, or {spec.reference} kept no completions."]
    return lines or ["Every verdict of the study is the same under every rule that reads an answer."]
