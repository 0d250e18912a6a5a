"""Kept completions scored again under each published extraction rule: no model, no retraining."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from lorax.errors import UserError
from lorax.records import RunRecord, Store, write_atomic
from lorax.records.fields import one_per_seed, task
from lorax.records.grouping import rows_of
from lorax.records.staleness import fresh
from lorax.reports.rescore_verdicts import verdict_changes
from lorax.studies.registration import frozen, frozen_path
from lorax.studies.study import read_study
from lorax.tasks import extractors


def gold(answer: str) -> str:
    """Return the answer that rules compare with: after the last `####` of a worked solution.

    Examples:
        >>> gold("6 - 2 = 4 apples #### 4")
        '4'
    """
    return answer.rpartition("####")[2].strip()


def rescore_items(items: Iterable[Mapping[str, Any]], rules: Iterable[str] | None = None) -> pd.DataFrame:
    """Score one run's kept completions under several rules.

    Args:
        items: rows with id, split, completion and answer; rows without a completion are skipped.
        rules: names of extraction rules; None takes all.

    Returns:
        One row an item and rule: id, split, recorded (the run's own score), rule, read (whether the
        rule found an answer at all), score (0 or 1).
    """
    chosen = [extractors.get(name) for name in (extractors.names() if rules is None else rules)]
    lines = []
    for item in items:
        if item.get("completion") is None or item.get("answer") is None:
            continue
        wanted, text = gold(str(item["answer"])), str(item["completion"])
        for rule in chosen:
            value = rule.extract(text)
            right = int(value is not None and rule.same(value, wanted))
            lines.append((item["id"], item.get("split"), item.get("score"), rule.name, value is not None, right))
    return pd.DataFrame(lines, columns=["id", "split", "recorded", "rule", "read", "score"])


def rescored(store: Store, name: str, split: str = "test") -> pd.DataFrame:
    """Score every run called `name` anew; of a study its final runs, or for validation those at the selected rates.

    Returns:
        One row a run and rule: run_id, row (a study's arm, else method and what sets it apart), task,
        seed, rule, recorded, read (share of completions), score (fraction), n (completions).

    Raises:
        UserError: there are no such records, or none of them kept completions.
    """
    lines: list[dict[str, Any]] = []
    for row, record in _runs(store, name, split):
        table = rescore_items(item for item in store.items(record) if item.get("split") == split)
        for rule, part in table.groupby("rule", sort=False):
            lines.append({
                "run_id": record.run_id, "row": row, "task": task(record),
                "seed": record.config.get("seed"), "rule": rule,
                "recorded": float(part["recorded"].astype(float).mean()), "read": float(part["read"].mean()),
                "score": float(part["score"].mean()), "n": len(part),
            })  # fmt: skip
    if not lines:
        raise UserError(f"rescore={name}: no run of this name kept completions of its {split} items")
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
        leaders: dict[str, list[str]] = defaultdict(list)
        for rule in means:
            # Where several share the best mean (all at 0, say) the rule names nobody.
            best = means.index[means[rule] == means[rule].max()]
            if len(best) == 1:
                leaders[str(best[0])].append(str(rule))
        own = " and ".join(sorted(recorded.index[recorded == recorded.max()]))
        if len(means) > 1:
            lines += [
                f"{name}: {', '.join(rules)} would put {best} first instead of {own}, by means alone."
                for best, rules in leaders.items()
                if best != own
            ] or [f"{name}: no rule puts another row than {own} first, by means alone."]
        blind = sorted(part.groupby("rule")["read"].mean().loc[lambda share: share == 0].index)
        if blind:
            lines.append(f"{name}: {', '.join(blind)} read no answer in any completion.")
    return lines


def write_rescored(store: Store, name: str, split: str = "test") -> tuple[str, list[Path]]:
    """Score the completions of `name` under every rule and write `<name>.rescored.{md,csv}`.

    Returns:
        The Markdown text and the paths.
    """
    table = rescored(store, name, split)
    parts = [f"# {name}: kept completions under each extraction rule ({split} split, per cent)"]
    for title, part in table.groupby("task", sort=True):
        means = part.groupby(["row", "rule"], sort=False)["score"].mean().unstack()
        means = means[[rule for rule in extractors.names() if rule in means]]
        recorded, seeds = part.groupby("row")["recorded"].mean(), part.groupby("row")["seed"].nunique()
        head = [title, "seeds", "recorded", *means.columns]
        body = [
            [
                row,
                seeds[row],
                f"{100 * recorded[row]:.1f}",
                *(f"{100 * value:.1f}" for value in means.loc[row]),
            ]
            for row in means.index
        ]
        align = ["left"] + ["right"] * (len(head) - 1)
        parts.append(tabulate(body, head, "pipe", disable_numparse=True, colalign=align))
    lines = notes(table)
    if frozen_path(store.root, name).is_file():
        lines += verdict_changes(read_study(frozen(store.root, name), store, items=False), table)
    parts.append("\n".join(f"- {line}" for line in lines))
    text = "\n\n".join(parts) + "\n"
    paths = [store.root / "tables" / f"{name}.rescored.{kind}" for kind in ("md", "csv")]
    write_atomic(paths[0], text)
    write_atomic(paths[1], table.to_csv(index=False, lineterminator="\n"))
    return text, paths


def _runs(store: Store, name: str, split: str) -> list[tuple[str, RunRecord]]:
    """Return (row, run): a study's rows are its arms, and a run that stands for two arms is there twice."""
    if frozen_path(store.root, name).is_file():
        study = read_study(frozen(store.root, name), store, items=False)
        if split == "test":
            return [(arm, run) for (_, arm), runs in study.finals.items() for run in runs.values()]
        chosen = {(task, arm): choice.lr for (task, arm), choice in study.choices.items()}
        return [(trial.arm, trial.record) for trial in study.trials if trial.lr == chosen.get((trial.task, trial.arm))]
    records = [record for record in fresh(store.read(name))[0] if record.status != "failed"]
    rows = rows_of(records)
    labels = {run: row.label if row.rank is None else f"{row.label} r={row.rank}" for run, row in rows.items()}
    by: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by[labels[record.run_id]].append(record)
    return [(label, record) for label, found in by.items() for record in one_per_seed(found)]
