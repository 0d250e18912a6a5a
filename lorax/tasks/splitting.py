"""Splits of given data: official test sets stay, the rest is cut by the hash of the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorax.errors import UserError
from lorax.tasks.base import Example, shuffled, unique


@dataclass(frozen=True)
class Sizes:
    """How many examples each split may hold at most; None: all there are."""

    n_train: int | None = None
    n_validation: int | None = None
    n_test: int | None = None
    n_heldout: int | None = None
    shots: int = 0


def split(
    official: Mapping[str, Sequence[Example]], sizes: Sizes, data_seed: int, name: str
) -> tuple[dict[str, tuple[Example, ...]], dict[str, Any]]:
    """Make disjoint splits out of what a dataset comes with.

    An official test set is kept whole; a prompt that it repeats gets an id of its own. Elsewhere a
    prompt is kept once, and only where test and then validation do not have it. Without an official test set a
    fifth of train becomes test, without an official validation set a tenth of the rest becomes
    validation; a twentieth, at most `n_heldout`, is held out for calibration. The order within a
    split, and hence what a size limit keeps, follows the prompt's hash and the data seed; official
    test sets are limited in an order of their own that no data seed moves.

    Args:
        official: train, and where the dataset has them validation and test.
        sizes: limits.
        data_seed: decides the cut.
        name: of the task, for messages.

    Returns:
        The splits, and notes: duplicates removed.

    Raises:
        UserError: too few examples for the splits.
    """
    given = official.get("test", ())
    seen = {example.id for example in given}
    kept = {"test": _numbered(given)}
    kept |= {part: unique(official.get(part, ()), seen) for part in ("validation", "train")}
    total = sum(len(examples) for examples in official.values())
    notes = {"duplicates": total - sum(map(len, kept.values()))}
    pool = shuffled(kept["train"], f"cut {data_seed}")
    test, validation = shuffled(kept["test"], "test"), shuffled(kept["validation"], "validation")
    if not test:
        test, pool = _cut(pool, max(1, len(pool) // 5))
    if not validation:
        validation, pool = _cut(pool, min(max(1, len(pool) // 10), sizes.n_validation or len(pool)))
    heldout, pool = _cut(pool, min(len(pool) // 20, len(pool) if sizes.n_heldout is None else sizes.n_heldout))
    shots, pool = _cut(pool, sizes.shots)
    if not pool or not validation or not test:
        raise UserError(f"task={name}: {total} rows, {notes['duplicates']} of them duplicates, are too few to split")
    splits = {
        "train": pool[: sizes.n_train], "validation": validation[: sizes.n_validation],
        "test": test[: sizes.n_test], "heldout": heldout, "shots": shots,
    }  # fmt: skip
    return {part: tuple(examples) for part, examples in splits.items()}, notes


def _numbered(examples: Sequence[Example]) -> list[Example]:
    """Give the second, third, ... example with the same prompt an id of its own."""
    times: Counter[str] = Counter()
    kept = []
    for example in examples:
        times[example.id] += 1
        again = f"-{times[example.id]}" if times[example.id] > 1 else ""
        kept.append(replace(example, id=example.id + again))
    return kept


def _cut(examples: list[Example], n: int) -> tuple[list[Example], list[Example]]:
    return examples[:n], examples[n:]
