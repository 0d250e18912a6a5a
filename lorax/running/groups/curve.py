"""The curve of a run over several tasks: its loss is the weighted mean of theirs, and each task's stands beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

Row = dict[str, float]


class Curve:
    """Puts the tasks' rows of a step together, when the last of them has come.

    Args:
        names: of the tasks.
        weights: of their losses, in the same order.
        log: called with each whole row.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], log: Callable[[Row], None]):
        self.names, self.weights, self._log = list(names), list(weights), log
        self._waiting: dict[float, dict[int, Row]] = defaultdict(dict)

    def add(self, task: int, row: Row) -> None:
        """Take a task's row of a step; a resumed task gives its earlier ones first."""
        rows = self._waiting[row["step"]]
        rows[task] = row
        if len(rows) == len(self.names):
            del self._waiting[row["step"]]
            self._log(self.whole([rows[at] for at in range(len(rows))]))

    def whole(self, rows: Sequence[Row]) -> Row:
        """Return the run's row of a step from the tasks' rows: `loss/<task>` is each task's own.

        Examples:
            >>> rows = [{"step": 0, "loss": 1.0, "lr": 0.1}, {"step": 0, "loss": 3.0, "lr": 0.1}]
            >>> Curve(["a", "b"], [0.5, 0.5], print).whole(rows)
            {'step': 0, 'loss': 2.0, 'lr': 0.1, 'loss/a': 1.0, 'loss/b': 3.0}
        """
        means = {
            key: sum(weight * row.get(key, 0.0) for weight, row in zip(self.weights, rows, strict=True))
            for key in ("loss", "penalty")
            if any(key in row for row in rows)
        }
        each = {f"loss/{name}": row["loss"] for name, row in zip(self.names, rows, strict=True)}
        return {**rows[0], **means, **each}
