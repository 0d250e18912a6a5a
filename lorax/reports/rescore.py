"""Kept completions scored again under each published extraction rule, and what a study would then conclude."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from lorax.errors import UserError
from lorax.records import RunRecord, Store, write_atomic
from lorax.records.fields import one_per_seed, task
from lorax.records.grouping import rows_of
from lorax.records.staleness import fresh
from lorax.reports.text import markdown
from lorax.reports.text.cells import to_csv
from lorax.reports.text.document import Document, Part, Table
from lorax.reports.text.numbers import points
from lorax.stats.judge import judge
from lorax.stats.result import Final
from lorax.studies.registration import frozen, frozen_path
from lorax.studies.study import Study, Windows, final_of, read_study
from lorax.tasks import extractors


def gold(answer: str) -> str:
    """Return the answer that rules compare with: after the last `####` of a worked solution.

    Examples:
        >>> gold("6 - 2 = 4 apples #### 4")
        '4'
    """
    return answer.rpartition("####")[2].strip()


def rescore_items(items: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Score one run's kept completions under every extraction rule.

    Args:
        items: rows with id, split, completion and answer; rows without a completion are skipped.

    Returns:
        One row per item and rule: id, split, recorded (the run's own score), rule, read (whether the
        rule read an answer), score (0 or 1).
    """
    rules = [extractors.get(name) for name in extractors.names()]
    lines = []
    for item in items:
        if item.get("completion") is None or item.get("answer") is None:
            continue
        wanted, text = gold(str(item["answer"])), str(item["completion"])
        for rule in rules:
            value = rule.extract(text)
            right = int(value is not None and rule.same(value, wanted))
            lines.append((item["id"], item.get("split"), item.get("score"), rule.name, value is not None, right))
    return pd.DataFrame(lines, columns=["id", "split", "recorded", "rule", "read", "score"])


Runs = list[tuple[str, RunRecord]]
"""(row of the table, run) pairs."""


def runs_of_study(study: Study, split: str) -> Runs:
    """Return a study's final runs by arm, or for validation its tuning runs at the selected rates.

    A run that stands for two arms is there twice.
    """
    if split == "test":
        return [(arm, run) for (_, arm), runs in study.finals.items() for run in runs.values()]
    chosen = {place: choice.lr for place, choice in study.choices.items()}
    return [(trial.arm, trial.record) for trial in study.trials if trial.lr == chosen.get((trial.task, trial.arm))]


def runs_of_sweep(records: list[RunRecord]) -> Runs:
    """Return a sweep's runs by the rows of its table, one per seed; failed and stale ones are left out."""
    kept = [record for record in fresh(records)[0] if record.status != "failed"]
    by_label: dict[str, list[RunRecord]] = defaultdict(list)
    rows = rows_of(kept)
    for record in kept:
        row = rows[record.run_id]
        by_label[row.label if row.rank is None else f"{row.label} r={row.rank}"].append(record)
    return [(label, record) for label, of_row in by_label.items() for record in one_per_seed(of_row)]


def rescored(store: Store, runs: Runs, split: str = "test") -> pd.DataFrame:
    """Score the kept completions of runs anew.

    Returns:
        One row per run and rule: run_id, row (of the table), task, seed, rule, recorded, read (share of
        completions), score (fraction), n (completions). Runs that kept no completions have none.
    """
    lines: list[dict[str, Any]] = []
    for row, record in runs:
        table = rescore_items(item for item in store.items(record) if item.get("split") == split)
        for rule, part in table.groupby("rule", sort=False):
            lines.append({
                "run_id": record.run_id, "row": row, "task": task(record),
                "seed": record.config.get("seed"), "rule": rule,
                "recorded": float(part["recorded"].astype(float).mean()), "read": float(part["read"].mean()),
                "score": float(part["score"].mean()), "n": len(part),
            })  # fmt: skip
    return pd.DataFrame(lines)


def notes(table: pd.DataFrame) -> list[str]:
    """Return what the choice of rule changes: the spread of scores, and who leads under each rule.

    Args:
        table: from `rescored`.
    """
    lines = []
    for name, part in table.groupby("task", sort=True):
        means = part.groupby(["row", "rule"])["score"].mean().unstack()
        recorded = part.groupby("row")["recorded"].mean()
        spread = (means.max(axis=1) - means.min(axis=1)).max()
        lines.append(f"{name}: the same completions score up to {100 * spread:.1f} points apart by rule alone.")
        rules_of: dict[str, list[str]] = defaultdict(list)
        for rule in means:
            # Where several rows share the best mean (all at 0, say) no row leads under the rule.
            best = means.index[means[rule] == means[rule].max()]
            if len(best) == 1:
                rules_of[str(best[0])].append(str(rule))
        leader = " and ".join(sorted(recorded.index[recorded == recorded.max()]))
        if len(means) > 1:
            lines += [
                f"{name}: {', '.join(rules)} would put {best} first instead of {leader}, by means alone."
                for best, rules in rules_of.items()
                if best != leader
            ] or [f"{name}: no rule puts another row than {leader} first, by means alone."]
        blind = sorted(part.groupby("rule")["read"].mean().loc[lambda share: share == 0].index)
        if blind:
            lines.append(f"{name}: {', '.join(blind)} read no answer in any completion.")
    return lines


def _by_rate(study: Study) -> Windows:
    """Return the final runs that verdicts rest on, by rate; rate None where it is taken as given."""
    return {place: study.windows.get(place, {None: runs}) for place, runs in study.finals.items()}


def verdict_changes(study: Study, table: pd.DataFrame) -> list[str]:
    """Judge a study's final runs again under each rule; return a line for each rule that changes a verdict.

    The learning rates stay those that the study's own score selected, and the paired t over seeds
    judges, which needs the rescored means only.

    Args:
        study: from `studies.study.read_study`.
        table: from `rescored`: row (the arm), run_id, rule, score, n.
    """
    spec = study.spec
    if study.result is None:
        return []
    if spec.until_decided is not None:
        return ["No verdict was judged again: the study's own score decided how many seeds each arm ran."]
    place_of: dict[tuple[str, str], Final] = {  # one run may stand for two arms, so the arm is part of the key
        (arm, run.run_id): final_of(run, arm, name, seed, spec.metric, lr=lr)
        for (name, arm), rates in _by_rate(study).items()
        for lr, runs in rates.items()
        for seed, run in runs.items()
    }
    lines, judged = [], 0
    for rule, part in table.groupby("rule", sort=False):
        finals = []
        for row, run, score, n in part[["row", "run_id", "score", "n"]].itertuples(index=False):
            if (row, run) in place_of:
                finals.append(replace(place_of[row, run], score=score, n_items=n))
        # A rule that finds no right answer anywhere would call everything equivalent.
        if part["score"].max() == 0 or not any(final.arm == spec.reference for final in finals):
            continue
        judged += 1
        again = judge(
            finals, reference=spec.reference, margin=spec.margin, alpha=spec.alpha, arms=spec.labels, tasks=spec.tasks,
            estimand=spec.estimand, claim=spec.claim,
        )  # fmt: skip
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


def write_rescored(store: Store, name: str, split: str = "test") -> tuple[str, list[Path]]:
    """Score the completions of `name` under every rule and write `<name>.rescored.{md,csv}`.

    Returns:
        The Markdown text and the paths.

    Raises:
        UserError: there are no such records, or none of them kept completions.
    """
    study = None
    if frozen_path(store.root, name).is_file():
        study = read_study(frozen(store.root, name), store, items=False)
    table = rescored(store, runs_of_study(study, split) if study else runs_of_sweep(store.read(name)), split)
    if table.empty:
        raise UserError(f"rescore={name}: no run of this name kept completions of its {split} items")
    lines = notes(table)
    if study:
        by_rate = _by_rate(study)
        everything = [(arm, run) for (_, arm), rates in by_rate.items() for of in rates.values() for run in of.values()]
        lines += verdict_changes(study, rescored(store, everything, split) if study.windows else table)
    tables = [_means(str(name), part) for name, part in table.groupby("task", sort=True)]
    title = f"{name}: kept completions under each extraction rule ({split} split, per cent)"
    text = markdown.render(Document(title, [Part("", lines, tables)]))
    paths = [store.root / "tables" / f"{name}.rescored.{kind}" for kind in ("md", "csv")]
    write_atomic(paths[0], text)
    write_atomic(paths[1], to_csv(table))
    return text, paths


def _means(title: str, table: pd.DataFrame) -> Table:
    """Return one task's mean scores over seeds, rows down, rules across."""
    means = table.groupby(["row", "rule"], sort=False)["score"].mean().unstack()
    means = means[[rule for rule in extractors.names() if rule in means]]
    recorded, seeds = table.groupby("row")["recorded"].mean(), table.groupby("row")["seed"].nunique()
    body = [[row, str(seeds[row]), *map(points, (recorded[row], *means.loc[row]))] for row in means.index]
    return Table([title, "seeds", "recorded", *means.columns], body)
