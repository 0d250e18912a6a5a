"""Others' tables: what their published scores can and cannot separate.

Intervals and tests here cover the choice of items only. One run per row does not say what another seed of the
same method would score, so two rows that are separated are two checkpoints, not yet two methods.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lorax.errors import UserError
from lorax.records import write_atomic
from lorax.reports import columns
from lorax.reports.columns import Column
from lorax.reports.published.read import Published, read_folder
from lorax.reports.text import markdown, numbers
from lorax.reports.text.cells import to_csv
from lorax.reports.text.document import Document, Part
from lorax.stats.effects import holm, mcnemar, two_proportions, wilson
from lorax.stats.letters import compact_letters

LEVEL = 0.05
"""Of all tests, two-sided."""
Line = Mapping[Hashable, Any]
"""A row of `Separability.table`."""


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
    for (i, j), different in zip(pairs, rejected, strict=True):
        apart[i, j] = apart[j, i] = different
    marks = compact_letters(apart)
    lines = []
    for row, mark in zip(rows, marks, strict=True):
        low, high = interval(row)
        facts = row.facts or {}
        lines.append({"name": row.name, "score": row.score, "low": low, "high": high, "n": row.n,
                      "letters": mark, **facts})  # fmt: skip
    like_best = 1 + sum(value >= LEVEL for (i, _), value in zip(pairs, p, strict=True) if i == 0)
    paired = all(row.items is not None for row in rows) and len({frozenset(row.items or ()) for row in rows}) == 1
    return Separability(
        pd.DataFrame(lines), len(pairs), int((p < LEVEL).sum()), int(rejected.sum()), top,
        int(best.sum()), int((p[best] < LEVEL).sum()), int((holm(p[best]) < LEVEL).sum()), like_best, paired,
    )  # fmt: skip


def conclusion(result: Separability) -> list[str]:
    """Return in sentences what the table can tell apart, and what it cannot."""
    table, n = result.table, int(result.table["n"].max())
    seeds = set(table["seed"]) if "seed" in table else set()
    same_seed = f" (all at seed {next(iter(seeds))})" if len(seeds) == 1 else ""
    lines = [
        f"{len(table)} rows, {n:,} items, one run a row{same_seed}: intervals and tests cover the choice of items "
        "only. Another seed of the same method would move every score further.",
        f"Of the {result.top_pairs:,} pairs among the top {result.top}, {_count(result.top_corrected)} Holm's "
        f"correction at {100 * LEVEL:g} % ({result.top_raw} are below {100 * LEVEL:g} % before correction, "
        f"{result.top_pairs - result.top_raw} are not).",
        f"Of all {result.pairs:,} pairs, {_count(result.corrected)} the correction ({result.raw:,} before it).",
        f"{result.like_best} rows, the best included, cannot be told from the best even without correction.",
        "Pairs are compared item by item (exact McNemar, or paired t)." if result.paired else
        "No per-item answers were published: pairs are compared unpaired, which costs power.",
    ]  # fmt: skip
    if "lr" in table:
        lines.append(_rates(table))
    return lines


def _rates(table: pd.DataFrame) -> str:
    """Say at which learning rates the rows ran: all at one, or each at its own, they were not tuned alike."""
    known = table["lr"].dropna()
    unknown = len(table) - len(known)
    if known.empty:
        return f"No file names its learning rate: whether the {len(table)} rows were tuned alike is not known."
    rate, count = Counter(known).most_common(1)[0]
    tail = f"; {unknown} name none" if unknown else ""
    if count == len(known):
        return f"{count} of {len(table)} rows share the learning rate {rate:g}{tail}: none was tuned for its method."
    others = f"{len(known) - count} {'has its' if len(known) - count == 1 else 'have their'} own"
    return (
        f"{count} of {len(table)} rows share the learning rate {rate:g}; {others}{tail}: the rows were not tuned alike."
    )


def _count(number: int) -> str:
    return {0: "none survives", 1: "1 survives"}.get(number, f"{number:,} survive")


def write_imported(folder: str | Path, results_dir: str | Path, items: int | None = None) -> tuple[str, list[Path]]:
    """Re-analyse a folder of published results and write `tables/import-<folder>.{md,csv}`.

    Returns:
        The Markdown text and the paths.
    """
    folder = Path(folder)
    parts, frames = [], []
    for task, rows in read_folder(folder, items).items():
        result = separate(rows)
        frames.append(result.table.assign(task=task))
        lines = result.table.to_dict("records")
        parts += [Part(task, conclusion(result)), Part("", tables=[columns.table(_columns(result.table), lines)])]
    name = "import-" + "-".join(re.sub(r"[^\w.]+", "_", part) for part in folder.resolve().parts[-2:])
    paths = [Path(results_dir) / "tables" / f"{name}.{kind}" for kind in ("md", "csv")]
    text = markdown.render(Document(f"{folder}: what these scores can tell apart", parts))
    write_atomic(paths[0], text)
    write_atomic(paths[1], to_csv(pd.concat(frames)))
    return text, paths


def _columns(table: pd.DataFrame) -> list[Column[Line]]:
    """Return the columns of the Markdown table: rate and size only where the files have them."""
    shown: list[Column[Line]] = [
        Column("", "row", lambda line: line["name"]),
        Column("", "score [95 %]", lambda line: numbers.bounded(line["score"], line["low"], line["high"])),
        Column("", "letters", lambda line: line["letters"]),
    ]
    if "lr" in table:
        shown.append(Column("", "lr", lambda line: numbers.number(line["lr"], 6)))
    if "parameters" in table:
        shown.append(Column("", "trained", lambda line: numbers.count(line["parameters"])))
    return shown
