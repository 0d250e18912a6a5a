"""Test items that favour an arm or a rate in every run: what verdicts about methods say then, of this test set and of
new items.

    score of one item = expected score + v_ai + w_aki + e_aksi,   a arm, k rate, s seed, i item

v and w stay the same over seeds. The paired t is about this test set, for which they are part of the truth; the crossed
procedure is about new items, for which they are noise that more seeds do not average out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lorax.calibration.protocol import window_rates
from lorax.calibration.worlds import Batch, World, draws
from lorax.stats import effects
from lorax.stats.best_rate import Window, compare
from lorax.stats.rule import VERDICTS, decide

ALPHA, COUNT = 0.05, 100
PROCEDURES = {"paired_t": effects.paired_t, "crossed": effects.crossed}


def measure(world: World, tables: int, seed: int = 0, favour: float = 0.007) -> list[dict[str, Any]]:
    """Count false differences between equal methods, estimand `method`, by procedure.

    Args:
        world: without effects; its `items` is what the noise of items adds to a run.
        tables: how many.
        seed: of the simulation.
        favour: sd of what v and w together add to an arm's test score at a rate, half of its variance each.

    Returns:
        For each procedure: share of studies with a difference that is none for new items (`false`: the peaks are
        equal), or none for this test set (`false_here`); coverage of single 95 % intervals likewise.
    """
    counts: dict[str, list[np.ndarray]] = {name: [] for name in PROCEDURES}
    generator = np.random.default_rng([seed, 1, *world.name.encode()])
    for batch in draws(replace(world, items=0.0), tables, seed, batch=25):
        every, here = _by_item(batch, world.items, favour, generator)
        for name, procedure in PROCEDURES.items():
            counts[name].append(_counted(batch, every, here, name, procedure, world.margin))
    out = []
    for name, parts in counts.items():
        mean = np.concatenate(parts).mean(axis=0)
        keys = ("false", "false_here", "coverage", "coverage_here")
        out.append(
            {"world": world.name, "procedure": name, "tables": tables, **dict(zip(keys, map(float, mean), strict=True))}
        )
    return out


def _by_item(batch: Batch, noise: float, favour: float, g: np.random.Generator) -> tuple[Window, np.ndarray]:
    """Return every arm's window by item, and the difference of the best lattice points on these items."""
    of_arm, of_rate = (
        g.normal(0, favour * (COUNT / 2) ** 0.5, (*shape, COUNT))
        for shape in ((*batch.level.shape[:2], 1), batch.level.shape)
    )
    favoured = of_arm + of_rate
    expected = (batch.level + favoured.mean(axis=-1)).max(axis=-1)
    low, high, best = window_rates(batch)
    rates = np.minimum(low[..., None] + np.arange((high - low).max() + 1), high[..., None])
    e = g.normal(0, noise * COUNT**0.5, (*batch.test.shape, COUNT))
    test = batch.test[..., None] + favoured[:, :, :, None] + e
    test = np.take_along_axis(test, rates[..., None, None], axis=2)
    return Window(test, best - low, (best == low) | (best == high)), expected[:, 1:] - expected[:, :1]


def _counted(batch: Batch, every: Window, here: np.ndarray, name: str, procedure: Any, margin: float) -> np.ndarray:
    data = every if name == "crossed" else replace(every, test=every.test.mean(axis=-1))
    reference, arms = (
        Window(data.test[:, part], data.best[:, part], data.at_edge[:, part]) for part in (slice(0, 1), slice(1, None))
    )
    found = compare(arms, reference, partial(procedure, resolution=1 / COUNT / 5))
    code = decide(found, margin, ALPHA).code
    sign = (code == VERDICTS.index("better")).astype(int) - (code == VERDICTS.index("worse"))
    low, high = found.interval(0.95)
    zero = 1e-9
    return np.stack([
        (sign != 0).any(axis=-1),
        ((sign != 0) & (sign != np.where(np.abs(here) > zero, np.sign(here), 0))).any(axis=-1),
        ((low <= batch.lattice) & (batch.lattice <= high)).mean(axis=-1),
        ((low <= here) & (here <= high)).mean(axis=-1),
    ], axis=-1).astype(float)  # fmt: skip


def rows(worlds: Sequence[World], tables: int, seed: int = 0) -> list[dict[str, Any]]:
    """Measure several worlds."""
    return [row for world in worlds for row in measure(world, tables, seed)]
