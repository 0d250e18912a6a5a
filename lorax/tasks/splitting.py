"""Splits of data that exists: an official test set stays, the rest is cut by the hash of the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

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


class Splits(TypedDict):
    """The splits of a `Task`."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    heldout: tuple[Example, ...]
    shots: tuple[Example, ...]


def split(
    official: Mapping[str, Sequence[Example]], sizes: Sizes, data_seed: int, name: str
) -> tuple[Splits, dict[str, Any]]:
    """Make disjoint splits out of those that a dataset has.

    An official test set is kept whole; where it repeats a prompt, the repetitions get ids of their own. In the
    other splits a prompt is kept once: in validation if test does not have it, in train if neither has it.
    Without an official test set a fifth of train becomes test. Without an official validation set a tenth of
    the rest becomes validation. A twentieth, at most `n_heldout`, is held out for calibration. The order within
    a split, and hence what a size limit keeps, follows from the prompt's hash and the data seed; that of an
    official test or validation set from the hash alone.

    Args:
        official: train, and where the dataset has them validation and test.
        sizes: limits.
        data_seed: decides the cut.
        name: of the task, for messages.

    Returns:
        The splits, and notes: duplicates removed, and in `data` a sentence on what became of the rows.

    Raises:
        UserError: too few examples for the splits.
    """
    official_test = official.get("test", ())
    seen = {example.id for example in official_test}
    kept = {"test": _numbered(official_test)}
    kept |= {part: unique(official.get(part, ()), seen) for part in ("validation", "train")}
    total = sum(len(examples) for examples in official.values())
    left = sum(map(len, kept.values()))
    notes: dict[str, Any] = {"duplicates": total - left, "data": _account(official, total, left)}
    pool = shuffled(kept["train"], f"cut {data_seed}")
    test, validation = shuffled(kept["test"], "test"), shuffled(kept["validation"], "validation")
    if not test:
        test, pool = _cut(pool, max(1, len(pool) // 5))
    if not validation:
        validation, pool = _cut(pool, min(max(1, len(pool) // 10), sizes.n_validation or len(pool)))
    heldout, pool = _cut(pool, min(len(pool) // 20, len(pool) if sizes.n_heldout is None else sizes.n_heldout))
    shots, pool = _cut(pool, sizes.shots)
    if not pool or not validation or not test:
        raise UserError(f"task={name}: {notes['data']}: too few to split")
    splits = Splits(
        train=tuple(pool[: sizes.n_train]),
        validation=tuple(validation[: sizes.n_validation]),
        test=tuple(test[: sizes.n_test]),
        heldout=tuple(heldout),
        shots=tuple(shots),
    )
    return splits, notes


def _account(official: Mapping[str, Sequence[Example]], total: int, kept: int) -> str:
    """Return how many rows were read, kept and dropped, and why."""
    answers: dict[str, set[str]] = {}
    repeated = differing = 0
    for part in ("test", "validation", "train"):
        for example in official.get(part, ()):
            known = answers.setdefault(example.id, set())
            if known and part != "test":
                repeated, differing = (repeated + (example.answer in known), differing + (example.answer not in known))
            known.add(example.answer)
    reasons = [f"same prompt and answer: {repeated:,}"] if repeated else []
    reasons += [f"same prompt, another answer: {differing:,}"] if differing else []
    sentence = f"read {total:,} rows, kept {kept:,}, dropped {total - kept:,}"
    return sentence + (f" ({', '.join(reasons)})" if reasons else "")


def _numbered(examples: Sequence[Example]) -> list[Example]:
    """Give the second, third, ... example with the same prompt an id of its own."""
    times: Counter[str] = Counter()
    kept = []
    for example in examples:
        times[example.id] += 1
        suffix = f"-{times[example.id]}" if times[example.id] > 1 else ""
        kept.append(replace(example, id=example.id + suffix))
    return kept


def _cut(examples: list[Example], n: int) -> tuple[list[Example], list[Example]]:
    return examples[:n], examples[n:]
