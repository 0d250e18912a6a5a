"""Whether a record may be believed: its id from its identity, its scores from its items, its digests. Torch-free."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorax.records.guarded_json import Damaged, read_bytes, read_lines
from lorax.records.record import RunRecord, run_id

ITEMS = ".items.jsonl.gz"
SCORED = ("score", "tolerant", "loss")


def read_record(path: Path) -> RunRecord:
    """Read a record's file; see `RunRecord.from_json`.

    Raises:
        Damaged: it holds no record, or one that was changed after it was written.
    """
    return RunRecord.from_json(read_bytes(path), str(path))


def read_believed(path: Path, name: str) -> RunRecord:
    """Read a record that a table may show.

    Args:
        path: its file.
        name: what its records are called.

    Raises:
        Damaged: as `read_record`; or `why_not_believed` says why.
    """
    record = read_record(path)
    reason = why_not_believed(record, path, name)
    if reason is not None:
        raise Damaged(f"{path}: {reason}")
    return record


def why_not_believed(record: RunRecord, path: Path, name: str) -> str | None:
    """Return the first thing that disagrees in a record, its name, its file and its items; None: nothing does.

    Args:
        record: from `path`.
        path: its file.
        name: what its records are called.
    """
    if record.run_id != path.stem:
        return f"holds run {record.run_id[:40]}"
    if record.name != name:
        return f"belongs to records called {record.name[:60]!r}"
    try:
        expected = run_id(record.identity)
    except (TypeError, ValueError, RecursionError):
        return "its identity has no id (it holds what no JSON has)"
    if record.run_id != expected:
        return f"its identity is that of run {expected}: one of them was changed"
    items = path.with_suffix(ITEMS)
    stat = items.stat() if items.is_file() else None
    try:
        if record.items_digest is not None:
            found = _file_digest(items, stat.st_size, stat.st_mtime_ns) if stat else ""
            if found != record.items_digest:
                return "its items are missing" if stat is None else "its items are not those that it was written with"
            return None  # scores and items were written together, and neither has changed
        means = _means(items, stat.st_size, stat.st_mtime_ns) if stat else {}
    except Damaged as error:
        return f"its items cannot be read: {error}"
    return disagreement(record, means)


def disagreement(record: RunRecord, means: Mapping[str, Mapping[str, float | None]]) -> str | None:
    """Return where a record's scores are not the means of its items; None where they are, or it has no items.

    Args:
        record: the run.
        means: split -> {score, tolerant, loss, n} over the items, from `means_of`.
    """
    for split, entry in record.scores.items():
        if not entry or not means or split.startswith("base_"):
            continue
        if split not in means:
            return f"it has a {split} score but no {split} items"
        for key in (*SCORED, "n"):
            stated, counted = entry.get(key), means[split].get(key)
            if (stated is None) != (counted is None) or (
                stated is not None and counted is not None and not math.isclose(stated, counted, rel_tol=1e-9)
            ):
                return f"its {split} {key} is {stated}, its items say {counted}"
    return None


def means_of(items: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return split -> {score, tolerant, loss, n}: the means over its items, None without a finite one; their number.

    Items of a run over several tasks name theirs; the mean is then over tasks, of each task's mean over its items.

    Examples:
        >>> means_of([{"split": "test", "score": 1.0}, {"split": "test", "score": 0.0}])
        {'test': {'score': 0.5, 'tolerant': None, 'loss': None, 'n': 2}}
    """
    by_task: dict[str, dict[Any, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        by_task[str(item.get("split"))][item.get("task")].append(item)
    means: dict[str, dict[str, float | None]] = {}
    for split, tasks in by_task.items():
        each = [_means_of_one(of_task) for of_task in tasks.values()]
        means[split] = {key: over_tasks([mean[key] for mean in each]) for key in SCORED}
        means[split]["n"] = sum(map(len, tasks.values()))
    return means


def over_tasks(means: Sequence[float | None]) -> float | None:
    """Return the mean of tasks' means; None where one of them has none."""
    known = [mean for mean in means if mean is not None]
    return sum(known) / len(known) if known and len(known) == len(means) else None


def _means_of_one(items: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    values: dict[str, list[float]] = {key: [] for key in SCORED}
    for item in items:
        for key in SCORED:
            value = item.get(key)
            if value is None:
                continue
            if not isinstance(value, bool | int | float):
                raise Damaged(f"an item's {key} is no number")
            values[key].append(float(value))
    sums = {key: sum(numbers) / len(numbers) if numbers else None for key, numbers in values.items()}
    # A record holds null where the mean is no finite number.
    return {key: mean if mean is not None and math.isfinite(mean) else None for key, mean in sums.items()}


@lru_cache(maxsize=4096)
def _means(path: Path, size: int, changed: int) -> dict[str, dict[str, float | None]]:
    """Return `means_of` a file, once a process and time of change."""
    return means_of(read_lines(path, nan=True))


@lru_cache(maxsize=65536)
def _file_digest(path: Path, size: int, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
