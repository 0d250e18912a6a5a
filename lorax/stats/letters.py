"""Compact letters: two arms that share a letter are not separated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def compact_letters(separated: ArrayLike, order: Sequence[int] | None = None) -> list[str]:
    """Return letters such that two rows share one if and only if they are not separated.

    Insert and absorb (Piepho 2004): start with one letter for all; a separated pair splits every
    letter that both carry; a letter whose rows all carry another letter is dropped.

    Args:
        separated: (A, A) symmetric, true where a pair is separated.
        order: rows from best to worst, `a` is given to the best; None: as they are.

    Returns:
        One string per row.

    Examples:
        >>> compact_letters([[0, 0, 1], [0, 0, 0], [1, 0, 0]])
        ['a', 'ab', 'b']
    """
    apart = np.asarray(separated, dtype=bool)
    count = len(apart)
    order = list(range(count)) if order is None else list(order)
    groups: list[frozenset[int]] = [frozenset(range(count))]
    for i in range(count):
        for j in range(i + 1, count):
            if apart[i, j]:
                groups = _split(groups, i, j)
    place = {row: at for at, row in enumerate(order)}
    groups.sort(key=lambda group: sorted(place[row] for row in group))
    return ["".join(_letter(at) for at, group in enumerate(groups) if row in group) for row in range(count)]


def _split(groups: list[frozenset[int]], i: int, j: int) -> list[frozenset[int]]:
    both = [group for group in groups if i in group and j in group]
    split = [group for group in groups if group not in both]
    split += [part for group in both for part in (group - {i}, group - {j})]
    unique = set(split)
    return [group for group in unique if group and not any(group < other for other in unique)]


def _letter(at: int) -> str:
    return chr(ord("a") + at) if at < 26 else f"({at + 1})"
