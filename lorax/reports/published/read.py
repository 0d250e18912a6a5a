"""Readers of published results: PEFT's `method_comparison` JSONs and lm-evaluation-harness sample logs."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorax.errors import UserError, one_line

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
    """Read a folder of published results, one list of rows per task.

    Args:
        folder: holds PEFT result JSONs, or lm-evaluation-harness output (searched in sub-folders).
        items: number of test items of the PEFT rows; None infers it from the scores.

    Raises:
        UserError: there is no such folder, nothing in it can be read, or a file has another format than its name says.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"import: no folder {folder}")
    samples = sorted(folder.rglob("samples_*.jsonl"))
    if samples:
        return _lm_eval(folder, samples)
    rows = _peft_rows(folder)
    if not rows:
        raise UserError(f"import: {folder} holds neither PEFT result JSONs nor samples_*.jsonl")
    n = items or infer_items([row.score for row in rows])
    return {"test accuracy": [Published(row.name, row.score, n, facts=row.facts) for row in rows]}


def _peft_rows(folder: Path) -> list[Published]:
    """Return the rows of a folder's JSONs; where it holds none, those of the folders below, which then name them."""
    rows = [row for path in sorted(folder.glob("*.json")) if (row := _peft_row(path)) is not None]
    if rows:
        return rows
    below = [path for path in sorted(folder.rglob("*.json")) if path.parent != folder]
    found = [(path, row) for path in below if (row := _peft_row(path)) is not None]
    alone = len({path.parent for path, _ in found}) == 1
    return [row if alone else replace(row, name=f"{path.parent.relative_to(folder)}/{row.name}") for path, row in found]


def infer_items(scores: Sequence[float], most: int = 20_000) -> int:
    """Return the smallest number of items of which every score is a whole fraction.

    Raises:
        UserError: there is none up to `most`: the scores were rounded, or the rows differ in their number of items.

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


def _peft_row(path: Path) -> Published | None:
    """Read one PEFT result JSON; None for a file of another layout, or a run without a score."""
    try:
        data = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"import: {path} is not JSON ({one_line(error)})") from None
    if not isinstance(data, dict) or not {"run_info", "train_info"} <= data.keys():
        return None
    run, train = _mapping(data["run_info"]), _mapping(data["train_info"])
    entries = train.get("metrics")
    scores = [
        entry["test accuracy"]
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and "test accuracy" in entry
    ]
    if not scores:
        return None
    score = _number(scores[-1])
    if score is None or not 0 <= score <= 1:
        raise UserError(f"import: {path}: test accuracy {scores[-1]!r}, a number between 0 and 1 is needed")
    config = _mapping(run.get("train_config"))
    facts = {
        "lr": _number(_mapping(config.get("optimizer_kwargs")).get("lr")),
        "parameters": _number(train.get("num_trainable_params")),
        "train_seconds": _number(train.get("train_time")),
        "peak_mb": round((_number(train.get("accelerator_memory_max")) or 0) / 2**20) or None,
        "seed": _number(config.get("seed")),
    }
    return Published(str(run.get("experiment_name") or path.stem), score, 0, facts=facts)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int | float | None:
    """Return a finite number; None for anything else, since other people's files may hold anything there."""
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if plain else None


def _lm_eval(folder: Path, paths: list[Path]) -> dict[str, list[Published]]:
    """Read sample logs; return task, metric and filter -> rows, one for each model's folder."""
    tables: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
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
        # Of several logs of one model and task the last one counts; file names end in the time.
        for name, items in newest.items():
            tables[name][row] = items
    return {
        task: [Published(row, float(np.mean(list(items.values()))), len(items), items) for row, items in rows.items()]
        for task, rows in sorted(tables.items())
    }
