"""Equal trainable parameters: the rank, width or band at which an arm has as many as another arm."""

from __future__ import annotations

from collections.abc import Callable

from lorax.errors import UserError


def nearest(count: Callable[[int], int], target: int, low: int = 1, high: int = 1024) -> int:
    """Return the whole number at which a growing count comes nearest to `target`; of two the lower.

    Bisection; values that the method refuses (a rank above min(m, n)) bound the search from above.

    Args:
        count: value -> trainable parameters over all target layers; never falls.
        target: parameters to reach.
        low: smallest value tried.
        high: largest value tried.

    Raises:
        UserError: the method refuses even `low`.

    Examples:
        >>> nearest(lambda r: 24 * r * r, 9_000)
        19
    """
    counts: dict[int, int | None] = {}

    def at(value: int) -> int | None:
        if value not in counts:
            try:
                counts[value] = int(count(value))
            except UserError:
                counts[value] = None
        return counts[value]

    if at(low) is None:
        count(low)  # raises the method's own error
    below, above = low, high + 1
    while above - below > 1:
        middle = (below + above) // 2
        tried = at(middle)
        if tried is not None and tried <= target:
            below = middle
        else:
            above = middle
    counted = [(value, at(value)) for value in (below, below + 1) if value <= high]
    return min((abs(n - target), value) for value, n in counted if n is not None)[1]
