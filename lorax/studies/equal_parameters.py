"""Equal trainable parameters: the rank, width or band at which an arm meets another arm's count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorax.errors import UserError

TOLERANCE = 0.1


@dataclass(frozen=True)
class Found:
    """The value of one field that comes nearest to a count of trainable parameters."""

    key: str
    value: int
    count: int
    target: int

    @property
    def ratio(self) -> float:
        """Count over target."""
        return self.count / self.target

    @property
    def met(self) -> bool:
        """Whether the count is within a tenth of the target."""
        return abs(self.ratio - 1) <= TOLERANCE


def nearest(count: Callable[[int], int], target: int, key: str, low: int = 1, high: int = 1024) -> Found:
    """Find the whole number at which a growing count comes nearest to `target`.

    Bisection; values that the method refuses (a rank above min(m, n)) bound the search from above.

    Args:
        count: value -> trainable parameters over all target layers; never falls.
        target: parameters to meet.
        key: name of the field, for the report.
        low: smallest value tried.
        high: largest value tried.

    Raises:
        UserError: the method refuses even `low`.

    Examples:
        >>> nearest(lambda r: 24 * r * r, 9_000, "rank")
        Found(key='rank', value=19, count=8664, target=9000)
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
        count(low)  # its own error says why
    below, above = low, high + 1
    while above - below > 1:
        middle = (below + above) // 2
        tried = at(middle)
        if tried is not None and tried <= target:
            below = middle
        else:
            above = middle
    options = [value for value in (below, below + 1) if value <= high and at(value) is not None]
    best = min(options, key=lambda value: (abs(counts[value] - target), value))  # type: ignore[operator]
    return Found(key, best, counts[best], target)  # type: ignore[arg-type]


def trainable(count: Callable[[int, int], int], shapes: Mapping[str, tuple[int, int]]) -> int:
    """Sum a method's closed formula over layers.

    Args:
        count: (m, n) -> trainable parameters of one layer.
        shapes: layer name -> (m, n).

    Examples:
        >>> trainable(lambda m, n: 8 * (m + n), {"q": (64, 64), "up": (128, 64)})
        2560
    """
    return sum(count(m, n) for m, n in shapes.values())


def report(found: Mapping[str, Found]) -> list[str]:
    """Say what was matched, one line an arm."""
    return [
        f"{label}: {f.key}={f.value} has {f.count:,} trainable parameters, {f.ratio:.2f} x {f.target:,}"
        + ("" if f.met else " (not matched: no value comes within a tenth)")
        for label, f in found.items()
    ]
