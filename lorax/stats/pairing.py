"""Pairing the runs of two arms by seed and by item, and the effect between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorax.errors import UserError
from lorax.stats import effects
from lorax.stats.result import Final

Cells = dict[tuple[str, str], dict[int | None, Final]]


def cells_of(finals: Sequence[Final]) -> Cells:
    """Sort final runs by (arm, task) and seed.

    Raises:
        UserError: one (arm, task, seed) occurs twice.
    """
    cells: Cells = {}
    for final in finals:
        runs = cells.setdefault((final.arm, final.task), {})
        if final.seed in runs:
            raise UserError(f"arm {final.arm!r}, task {final.task!r}: seed {final.seed} occurs twice")
        runs[final.seed] = final
    return cells


@dataclass(frozen=True)
class Contrast:
    """Paired runs of two arms in one task and their effect."""

    task: str
    first: str
    seeds: tuple[int, ...]
    differences: effects.Array
    effect: effects.Effect
    n_items: int
    item_noise: float | None
    note: str


def contrast(cells: Cells, task: str, first: str, second: str, procedure: str) -> Contrast:
    """Pair the runs of `first` and `second` in one task by seed; the effect is first minus second.

    A run without a seed is paired with every seed of the other arm. Without a pair nothing is known:
    the effect has an infinite standard error.

    Args:
        cells: from `cells_of`.
        task: of both.
        first: label of an arm.
        second: label of another arm.
        procedure: paired_t | crossed.
    """
    a, b = cells.get((first, task), {}), cells.get((second, task), {})
    seeds = _shared(a, b)
    if not seeds:
        nothing = effects.Effect(np.asarray(np.nan), np.asarray(np.inf), np.asarray(1.0))
        return Contrast(task, first, (), np.empty(0), nothing, 0, None, "no pair of runs")
    pairs = [(_run(a, seed), _run(b, seed)) for seed in seeds]
    d = np.array([x.score - y.score for x, y in pairs])
    n_items = min(min(x.n_items, y.n_items) for x, y in pairs)
    resolution = 1 / n_items if n_items else 0.0
    items = _item_differences(pairs)
    notes = []
    if any(x.items and y.items and x.items.keys() != y.items.keys() for x, y in pairs):
        notes.append("not the same test items")
    if len(seeds) == 1:
        notes.append("one seed: no verdict possible")
    elif d.std(ddof=1) <= resolution:
        notes.append("no spread between seeds; one item's worth assumed")
    if procedure == "crossed" and items is not None:
        effect = effects.crossed(items, resolution)
    else:
        effect = effects.paired_t(d, resolution)
        if procedure == "crossed":
            notes.append("items not kept: paired t instead of crossed")
    return Contrast(task, first, seeds, d, effect, n_items, _item_noise(items), "; ".join(notes))


def _run(runs: Mapping[int | None, Final], seed: int) -> Final:
    return runs[seed] if seed in runs else runs[None]


def _shared(a: Mapping[int | None, Final], b: Mapping[int | None, Final]) -> tuple[int, ...]:
    if not a or not b:
        return ()
    seeds = b.keys() if None in a else a.keys() if None in b else a.keys() & b.keys()
    numbered = tuple(sorted(seed for seed in seeds if seed is not None))
    return numbered or ((0,) if None in a and None in b else ())


def _item_differences(pairs: Sequence[tuple[Final, Final]]) -> effects.Array | None:
    """Return (seeds, items) differences on the items that all runs share; None where items were not kept."""
    items = [(x.items, y.items) for x, y in pairs if x.items is not None and y.items is not None]
    if len(items) < len(pairs):
        return None
    shared = sorted(set.intersection(*(set(side) for pair in items for side in pair)))
    return np.array([[x[name] - y[name] for name in shared] for x, y in items]) if shared else None


def _item_noise(items: effects.Array | None) -> float | None:
    """Sd that a per-seed difference would have if items flipped independently between seeds."""
    if items is None or len(items) < 2:
        return None
    return float(np.sqrt(items.var(axis=0, ddof=1).sum()) / items.shape[1])
