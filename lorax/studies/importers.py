"""Others' tables: what their published scores can and cannot separate.

Reads the result JSONs of PEFT's `method_comparison` and the `samples_*.jsonl` of
lm-evaluation-harness. Intervals and tests here know items only: one run a row says nothing about
what another seed of the same method would score, so every separation is an upper bound.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lorax.errors import UserError
from lorax.studies.stats import holm, mcnemar, two_proportions, wilson
from lorax.studies.verdicts_letters import compact_letters

LEVEL = 0.05
_METRICS = ("exact_match", "acc", "acc_norm", "em", "pass@1", "f1")


@dataclass(frozen=True)
class Published:
    """One row of somebody's table."""

    name: str
    score: float
    """Mean over items, in 0..1."""
    n: int
    """Number of test items."""
    items: dict[str, float] | None = None
    """Item -> score, where the items were published: pairs are then compared item by item."""
    facts: dict[str, Any] | None = None
    """What else the file says: lr, trainable parameters, seed."""


def read_folder(folder: str | Path, items: int | None = None) -> dict[str, list[Published]]:
    """Read a folder of published results, one list of rows a task.

    Args:
        folder: holds PEFT result JSONs, or lm-evaluation-harness output (searched in sub-folders).
        items: number of test items of the PEFT rows; None works it out from the scores.

    Raises:
        UserError: no such folder, nothing in it to read, or a file that is not what its name says.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"import: no folder {folder}")
    samples = sorted(folder.rglob("samples_*.jsonl"))
    if samples:
        return _lm_eval(folder, samples)
    rows = [row for path in sorted(folder.glob("*.json")) if (row := _peft_row(path)) is not None]
    if not rows:
        raise UserError(f"import: {folder} holds neither PEFT result JSONs nor samples_*.jsonl")
    n = items or infer_items([row.score for row in rows])
    return {"test accuracy": [Published(row.name, row.score, n, facts=row.facts) for row in rows]}


def infer_items(scores: Sequence[float], most: int = 20_000) -> int:
    """Return the smallest number of items of which every score is a whole fraction.

    Raises:
        UserError: there is none up to `most`: the scores were rounded, or the rows differ in items.

    Examples:
        >>> infer_items([2 / 7, 3 / 7, 0.0])
        7
    """
    values = np.asarray(scores)
    for n in range(1, most + 1):
        counts = values * n
        if np.all(np.abs(counts - np.round(counts)) < 1e-7 * n):
            return n
    raise UserError(f"import: no number of items up to {most} gives all {len(values)} scores; say items=<n>")


def interval(row: Published) -> tuple[float, float]:
    """Return the 95 % interval of one score over items: Wilson for counts, else Student's t.

    Source: Wilson (1927); unlike the normal interval it stays inside 0..1 at rates near the ends.
    """
    if row.items is None or set(row.items.values()) <= {0.0, 1.0}:
        return wilson(row.score, row.n, 1 - LEVEL)
    values = np.array(list(row.items.values()))
    half = stats.t.ppf(1 - LEVEL / 2, row.n - 1) * values.std(ddof=1) / np.sqrt(row.n)
    return float(row.score - half), float(row.score + half)


def pair_p(a: Published, b: Published) -> float:
    """Return the two-sided p of a difference between two rows, over items.

    Paired where both published the same items: exact McNemar for right or wrong, else a paired t.
    Otherwise the pooled two-proportion z, z = (a - b) / sqrt(p (1 - p) (1 / n_a + 1 / n_b)).
    """
    if a.items is not None and b.items is not None and a.items.keys() == b.items.keys():
        first, second = np.array([(a.items[key], b.items[key]) for key in a.items]).T
        if {*first, *second} <= {0.0, 1.0}:
            return mcnemar(first, second)[2]
        return float(stats.ttest_rel(first, second).pvalue) if np.any(first != second) else 1.0
    return two_proportions(a.score, a.n, b.score, b.n)


@dataclass(frozen=True)
class Separability:
    """What a table of published scores can tell apart."""

    table: pd.DataFrame
    """name, score, low, high, letters, and the facts; sorted by score."""
    pairs: int
    raw: int
    """Pairs with p < 5 % before correction."""
    corrected: int
    """Pairs that survive Holm over all pairs."""
    top: int
    """How many rows the next three are about."""
    top_pairs: int
    top_raw: int
    top_corrected: int
    like_best: int
    """Rows among all that the uncorrected test cannot tell from the best, the best included."""
    paired: bool


def separate(rows: list[Published], top: int = 20) -> Separability:
    """Compare all pairs of rows, and all pairs among the best `top`, with Holm over each family.

    Letters: rows that share one are not separated after correction over all pairs.

    Raises:
        UserError: fewer than two rows.
    """
    if len(rows) < 2:
        raise UserError(f"import: {len(rows)} row, nothing to compare")
    rows = sorted(rows, key=lambda row: (-row.score, row.name))
    pairs = list(itertools.combinations(range(len(rows)), 2))
    p = np.array([pair_p(rows[i], rows[j]) for i, j in pairs])
    rejected = holm(p) < LEVEL
    top = min(top, len(rows))
    best = np.array([max(pair) < top for pair in pairs])
    apart = np.zeros((len(rows), len(rows)), dtype=bool)
    for (i, j), no in zip(pairs, rejected, strict=True):
        apart[i, j] = apart[j, i] = no
    marks = compact_letters(apart)
    lines = []
    for row, mark in zip(rows, marks, strict=True):
        low, high = interval(row)
        facts = row.facts or {}
        lines.append({"name": row.name, "score": row.score, "low": low, "high": high, "n": row.n,
                      "letters": mark, **facts})  # fmt: skip
    like = 1 + sum(value >= LEVEL for (i, _), value in zip(pairs, p, strict=True) if i == 0)
    paired = all(row.items is not None for row in rows) and len({frozenset(row.items) for row in rows}) == 1
    return Separability(
        pd.DataFrame(lines), len(pairs), int((p < LEVEL).sum()), int(rejected.sum()), top,
        int(best.sum()), int((p[best] < LEVEL).sum()), int((holm(p[best]) < LEVEL).sum()), like, paired,
    )  # fmt: skip


def conclusion(found: Separability) -> list[str]:
    """Return in plain words what the table can tell apart, and what it cannot."""
    table, n = found.table, int(found.table["n"].max())
    seeds = set(table["seed"]) if "seed" in table else set()
    one = f" (all at seed {next(iter(seeds))})" if len(seeds) == 1 else ""
    lines = [
        f"{len(table)} rows, {n:,} items, one run a row{one}: intervals and tests cover the choice of items "
        "only. Another seed of the same method would move every score further.",
        f"Of the {found.top_pairs:,} pairs among the top {found.top}, {_count(found.top_corrected)} Holm's "
        f"correction at {LEVEL:.0%} ({found.top_raw} are below {LEVEL:.0%} before correction, "
        f"{found.top_pairs - found.top_raw} are not).",
        f"Of all {found.pairs:,} pairs, {_count(found.corrected)} the correction ({found.raw:,} before it).",
        f"{found.like_best} rows, the best included, cannot be told from the best even without correction.",
        "Pairs are compared item by item (exact McNemar, or paired t)." if found.paired else
        "No per-item answers were published: pairs are compared unpaired, which costs power.",
    ]  # fmt: skip
    if "lr" in table:
        rate, count = Counter(table["lr"].dropna()).most_common(1)[0]
        lines.append(
            f"{count} of {len(table)} rows share the learning rate {rate:g}; the others have their own: "
            "the rows were not tuned alike."
        )
    return lines


def _count(number: int) -> str:
    return {0: "none survives", 1: "1 survives"}.get(number, f"{number:,} survive")


def _peft_row(path: Path) -> Published | None:
    """Read one PEFT result JSON; None for a file of another layout, or a run without a score."""
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"import: {path} is not JSON ({error})") from None
    if not isinstance(data, dict) or not {"run_info", "train_info"} <= data.keys():
        return None
    run, train = data["run_info"], data["train_info"]
    scores = [entry["test accuracy"] for entry in train.get("metrics", []) if "test accuracy" in entry]
    if not scores:
        return None
    config = run.get("train_config", {})
    facts = {
        "lr": (config.get("optimizer_kwargs") or {}).get("lr"),
        "parameters": train.get("num_trainable_params"),
        "train_seconds": train.get("train_time"),
        "peak_mb": round((train.get("accelerator_memory_max") or 0) / 2**20) or None,
        "seed": config.get("seed"),
    }
    return Published(run.get("experiment_name", path.stem), float(scores[-1]), 0, facts=facts)


def _lm_eval(folder: Path, paths: list[Path]) -> dict[str, list[Published]]:
    """Read sample logs: a task (and filter, and metric) to rows, one row a model folder."""
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        task = re.sub(r"_\d{4}-\d\d-\d\d.*$", "", path.stem.removeprefix("samples_"))
        where = str(path.parent.relative_to(folder))
        row = where if where != "." else path.stem
        newest: dict[str, dict[str, float]] = defaultdict(dict)
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not line.strip():
                continue
            try:
                sample = json.loads(line)
                metric = next(key for key in [*sample.get("metrics", []), *_METRICS] if key in sample)
                value, item = float(sample[metric]), f"{sample['doc_id']} {sample.get('doc_hash', '')}"
            except (json.JSONDecodeError, StopIteration, KeyError, TypeError, ValueError, AttributeError):
                raise UserError(f"import: {path}, line {number}: no scored sample") from None
            rule = sample.get("filter", "none")
            name = f"{task} {metric}" + ("" if rule == "none" else f" ({rule})")
            newest[name][item] = value
        # Of several logs of one model and task the last counts: file names end in the time.
        for name, items in newest.items():
            found[name][row] = items
    return {
        task: [
            Published(row, float(np.mean(list(items.values()))), len(items), items)
            for row, items in rows.items()
        ]
        for task, rows in sorted(found.items())
    }
