"""How often verdicts about methods are wrong: estimands `method` and `rate`, each read as method against method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from lorax.calibration.protocol import judged, windows
from lorax.calibration.worlds import Batch, World, draws
from lorax.stats import power
from lorax.stats.rule import VERDICTS, decide

ALPHA, ITEMS = 0.05, 500
_BETTER, _WORSE, _EQUIVALENT = (VERDICTS.index(name) for name in ("better", "worse", "equivalent"))


@dataclass(frozen=True)
class Row:
    """What the verdicts of one estimand did in one world."""

    world: str
    estimand: str
    tables: int
    false_tables: float
    """Share of tables with any arm of the reference's peak called better or worse, or any other with the wrong sign."""
    false_lattice: float
    """The same against the best lattice points, which is what estimand `method` promises; any difference counts."""
    false_equivalent: float
    """Share of comparisons called equivalent although the peaks differ by the margin or more; nan where none does."""
    coverage: float
    """Share of single 95 % intervals that hold the difference of the best lattice points."""
    coverage_peak: float
    """The same for the difference of the peaks."""
    found: float
    """Share of differing arms called better or worse, with the right sign; nan where none differs."""
    equivalent: float
    """Share of comparisons called equivalent."""
    half: float
    """Median half width of single 95 % intervals; infinite ends counted."""
    at_edge: float
    """Share of windows whose best is at their edge."""

    @property
    def error(self) -> float:
        """Monte Carlo standard error of `false_tables`."""
        share = min(max(self.false_tables, 1 / self.tables), 1 - 1 / self.tables)
        return float(np.sqrt(share * (1 - share) / self.tables))

    def plain(self) -> dict[str, object]:
        """Return it as plain data; what was not measured is None."""
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()} | {
            "error": self.error
        }


def measure(world: World, tables: int, seed: int = 0, estimands: Sequence[str] = ("method", "rate")) -> list[Row]:
    """Count the errors of each estimand on the same simulated studies.

    Args:
        world: what is simulated.
        tables: how many.
        seed: of the simulation.
        estimands: in the order of the rows.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in estimands}
    for batch in draws(world, tables, seed):
        for name in estimands:
            parts[name].append(_counted(batch, world, name))
    return [_row(world, name, np.concatenate(counts)) for name, counts in parts.items()]


def _counted(batch: Batch, world: World, estimand: str) -> np.ndarray:
    """Return (tables, figures): sums over a table's comparisons, in the order that `_row` reads."""
    _, found, code = judged(batch, estimand, world.margin, ALPHA, items=ITEMS)
    low, high = found.interval(0.95)
    better, worse, equal = code == _BETTER, code == _WORSE, code == _EQUIVALENT
    peak, lattice, zero = batch.peak, batch.lattice, 1e-9
    apart = np.abs(peak) > zero
    beyond = np.abs(peak) >= world.margin - zero
    columns = [
        ((better & (peak <= zero)) | (worse & (peak >= -zero))).any(axis=-1),
        ((better & (lattice <= zero)) | (worse & (lattice >= -zero))).any(axis=-1),
        (equal & beyond).sum(axis=-1),
        beyond.sum(axis=-1),
        ((low <= lattice) & (lattice <= high)).mean(axis=-1),
        ((low <= peak) & (peak <= high)).mean(axis=-1),
        ((better & (peak > zero)) | (worse & (peak < -zero))).sum(axis=-1),
        apart.sum(axis=-1),
        equal.mean(axis=-1),
        np.median((high - low) / 2, axis=-1),
        windows(batch).at_edge.mean(axis=-1) if estimand == "method" else np.zeros(len(code)),
    ]
    return np.stack([np.asarray(column, dtype=float) for column in columns], axis=-1)


def _row(world: World, estimand: str, counts: np.ndarray) -> Row:
    mean = counts.mean(axis=0)
    share = [counts[:, at].sum() / counts[:, at + 1].sum() if counts[:, at + 1].any() else np.nan for at in (2, 6)]
    return Row(
        world.name, estimand, len(counts), float(mean[0]), float(mean[1]), float(share[0]), float(mean[4]),
        float(mean[5]), float(share[1]), float(mean[8]), float(np.median(counts[:, 9])), float(mean[10]),
    )  # fmt: skip


def detected(world: World, tables: int, seed: int = 0, estimand: str = "method") -> list[dict[str, object]]:
    """Return how often an arm is called better at the effect that its own row prints as detectable with 80 % power.

    The printed effect of each spread is the median over studies without differences; other studies then have one arm
    of each spread that is better by it, judged by the printed effect's own family.

    Args:
        world: without effects; arms of each of its spreads are measured.
        tables: of the second kind; a fifth of it of the first.
        seed: of the simulation.
        estimand: method | rate.
    """
    printed = {spread: _printed(world, spread, max(tables // 5, 20), seed, estimand) for spread in world.spread}
    out: list[dict[str, object]] = []
    for spread, effect in printed.items():
        better = replace(world, name=f"{world.name}, {spread:g} better", effects=(effect,), spread=(spread,))
        better = replace(better, reference_spread=world.reference_spread or min(world.spread))
        hits = [
            judged(batch, estimand, world.margin, ALPHA, items=ITEMS)[2][:, 0] == _BETTER
            for batch in draws(better, tables, seed + 1)
        ]
        found = float(np.concatenate(hits).mean())
        out.append({"world": world.name, "estimand": estimand, "spread": spread, "effect": effect, "found": found})
    return out


def _printed(world: World, spread: float, tables: int, seed: int, estimand: str) -> float:
    """Return the median of what rows of arms of one spread print as detectable."""
    alike = replace(world, spread=(spread,), reference_spread=world.reference_spread or min(world.spread))
    level, n = ALPHA / world.arms, world.seeds
    low, high = (
        np.concatenate(ends)
        for ends in zip(
            *(
                judged(batch, estimand, world.margin, items=ITEMS)[1].interval(1 - level)
                for batch in draws(alike, tables, seed)
            ),
            strict=True,
        )
    )
    se = (high - low) / 2 / power.quantile(level, n - 1)
    spreads = power.typical_sd(se[..., None], n, np.array([n - 1.0]))
    return power.detectable(float(np.median(spreads)), n, level, world.margin)


def peeked(world: World, tables: int, seed: int = 0, first: int = 3) -> dict[str, float]:
    """Return the share of tables in which an equal arm is called different by looking after every seed.

    Also of looking once at `first` + 2 seeds and then at the number that the table says would decide (`rate` alone).

    Args:
        world: with as many seeds as are looked at, at most; without effects.
        tables: how many.
        seed: of the simulation.
        first: seeds at the first look.
    """
    hits: dict[str, list[np.ndarray]] = {"method": [], "rate": [], "followed": []}
    for batch in draws(world, tables, seed):
        looked = {name: np.zeros(len(batch.peak), dtype=bool) for name in hits}
        for n in range(first, world.seeds + 1):
            part = replace(batch, validation=batch.validation[..., :n], test=batch.test[..., :n])
            for name in ("method", "rate"):
                _, _, code = judged(part, name, world.margin, items=ITEMS)
                looked[name] |= ((code == _BETTER) | (code == _WORSE)).any(axis=-1)
        looked["followed"] = _followed(batch, world, first + 2)
        for name, found in looked.items():
            hits[name].append(found)
    return {name: float(np.concatenate(found).mean()) for name, found in hits.items()}


def _followed(batch: Batch, world: World, start: int) -> np.ndarray:
    """Return the tables in which doing as the report says, arm by arm, ends in a false difference."""
    level, tables = ALPHA / world.arms, len(batch.peak)
    wrong = np.zeros(tables, dtype=bool)
    first = replace(batch, test=batch.test[..., :start])
    _, found, code = judged(first, "rate", world.margin, items=ITEMS)
    sd = found.below.se[..., 0] * start**0.5
    for table, arm in np.argwhere(code == 0):
        need = power.need(float(found.estimate[table, arm]), float(sd[table, arm]), start, ITEMS, level, world.margin)
        if need.seeds is None or need.seeds > world.seeds or need.verdict == "equivalent":
            continue
        more = Batch(
            *(
                getattr(batch, f)[table : table + 1]
                for f in ("pilot", "validation", "test", "peak", "lattice", "spread", "level")
            )
        )
        _, later, _ = judged(replace(more, test=more.test[..., : need.seeds]), "rate", world.margin, items=ITEMS)
        verdict = decide(later, world.margin, ALPHA, world.arms).code[0, arm]
        wrong[table] |= bool(verdict in (_BETTER, _WORSE))
    different = ((code == _BETTER) | (code == _WORSE)).any(axis=-1)
    return wrong | different
