"""Sizes: few shapes that the batches of a run are filled up to, so that what is recorded for a shape serves again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

MOST = 3
"""Sizes of a run: each is recorded, and takes memory of its own for what it writes."""
STEP = 8
"""Widths are multiples of it, as kernels like them."""


_Cut = tuple[float, tuple[int, ...]]
"""Tokens computed in all, and where the widths are cut."""


@dataclass(frozen=True)
class Size:
    """A shape that batches are filled up to, so that a run has few of them."""

    tokens: int
    """Of a padded row."""
    labels: int
    """Of a batch."""
    room: int
    """Of a lane in a batch, at most."""
    answer: int = 0
    """Tokens of a decoder's padded row."""

    def holds(self, other: Size) -> bool:
        """Return whether a batch of another size can be filled up to this one."""
        return all(mine >= theirs for mine, theirs in zip(asdict(self).values(), asdict(other).values(), strict=True))


def few_sizes(needed: Sequence[Size], bound: int | None, most: int = MOST) -> list[Size]:
    """Return at most `most` sizes that hold all those that are needed, with the fewest tokens computed in all.

    Args:
        needed: the size of every batch.
        bound: tokens that the model takes, or None.
        most: sizes at most.

    Returns:
        By width, ascending.

    Examples:
        >>> [size.tokens for size in few_sizes([Size(n, 1, 1) for n in (9, 9, 9, 30, 31, 64)], None, most=2)]
        [32, 64]
    """
    widths = [
        (width, len(list(part))) for width, part in groupby(sorted(_rounded(one.tokens, bound) for one in needed))
    ]
    # best[n][j]: (tokens, cuts) of the j narrowest widths in n sizes, each as wide as its widest
    best: list[list[_Cut]] = [[(0.0, ()), *[(float("inf"), ())] * len(widths)]]
    for _ in range(min(most, len(widths))):
        row: list[_Cut] = [(0.0, ())]
        for j in range(1, len(widths) + 1):
            count, options = 0, [best[-1][j]]
            for i in range(j - 1, -1, -1):
                count += widths[i][1]
                tokens, cuts = best[-1][i]
                options.append((tokens + count * widths[j - 1][0], (*cuts, widths[j - 1][0])))
            row.append(min(options))
        best.append(row)
    tops = best[-1][-1][1]
    return [_around([one for one in needed if low < _rounded(one.tokens, bound) <= top], top)
            for low, top in zip((0, *tops), tops, strict=False)]  # fmt: skip


def size_for(needed: Size, sizes: list[Size], bound: int | None) -> Size:
    """Return the first size that holds a batch; one that none holds gets a size of its own, which is added."""
    found = next((size for size in sizes if size.holds(needed)), None)
    if found is None:
        found = _around([needed], _rounded(needed.tokens, bound))
        sizes.append(found)
    return found


def _rounded(tokens: int, bound: int | None) -> int:
    rounded = -(-tokens // STEP) * STEP
    return rounded if bound is None else max(tokens, min(rounded, bound))


def _around(sizes: Sequence[Size], tokens: int) -> Size:
    """Return the smallest size of this width that holds all of these."""
    labels, room, answer = (max(getattr(size, name) for size in sizes) for name in ("labels", "room", "answer"))
    return Size(tokens, labels, room, answer)
