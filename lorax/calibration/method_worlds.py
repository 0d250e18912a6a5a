"""The worlds in which verdicts about methods are calibrated, and the bounds that they are known to break there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorax.calibration.worlds import World

UNEQUAL: dict[str, Any] = {"spread": (0.008, 0.014, 0.025, 0.04), "step": (0.005, 0.01, 0.02, 0.03)}
OWN: dict[str, Any] = {"shared": 0.0, "own": 0.015}
QUIET: dict[str, Any] = {"spread": (0.002,), "items": 0.003, "common": 0.002, "own": 0.008}
ALIKE = World("equal peaks, off the lattice")


def equal_peaks() -> list[World]:
    """Every arm has the reference's peak: any difference is false."""
    out = []
    for seeds in (5, 8, 16):
        named = f", {seeds} seeds"
        out += [
            World(f"off the lattice{named}", seeds=seeds),
            World(f"on the lattice{named}", seeds=seeds, on_grid=True),
            World(f"unequal spreads and curves{named}", seeds=seeds, **UNEQUAL),
            World(
                f"unequal, quiet reference, own validation{named}",
                seeds=seeds,
                reference_spread=0.008,
                **UNEQUAL,
                **OWN,
            ),
            World(f"steep, 3 points a step{named}", seeds=seeds, step=(0.03,)),
            World(f"flat, half a point a step{named}", seeds=seeds, step=(0.005,)),
            World(f"cliff above the peak, unequal{named}", seeds=seeds, cliff=3.0, **UNEQUAL),
            World(f"heavy tails, unequal{named}", seeds=seeds, heavy=True, **UNEQUAL),
        ]
    out += [
        World("5 tuning seeds, 1,000 validation items, 8 seeds", tuning_seeds=5, own=0.008, shared=0.006),
        World("31 comparisons, unequal, 8 seeds", arms=31, **UNEQUAL),
        World("62 comparisons, unequal, 8 seeds", arms=62, **UNEQUAL),
        World("floor, scores of 1 %, 8 seeds", score=0.01, spread=(0.003,), step=(0.001,), items=0.004, margin=0.02),
        World("ceiling, scores of 99 %, 8 seeds", score=0.99, spread=(0.003,), step=(0.001,), items=0.004, margin=0.02),
    ]
    return out


def differing() -> list[World]:
    """Arms that differ: what is found, and what is called equivalent though it is not."""
    three = (0.03, -0.03)
    worlds = [World(f"3 points apart, {seeds} seeds", seeds=seeds, effects=three) for seeds in (5, 8, 12, 16)]
    worlds += [
        World(f"3 points apart, unequal, {seeds} seeds", seeds=seeds, effects=three, **UNEQUAL) for seeds in (8, 12, 16)
    ]
    worlds += [
        World("at the margin, quiet, 8 seeds", effects=(0.01, -0.01) * 5, **QUIET),
        World("bimodal reference, quiet arms, 3 seeds", seeds=3, split=0.03, **QUIET),
        World("bimodal reference, quiet arms, 8 seeds", split=0.03, **QUIET),
    ]
    worlds += [
        World(f"one run in ten collapses, {seeds} seeds", seeds=seeds, collapse=0.1, margin=0.02, **QUIET)
        for seeds in (5, 8)
    ]
    return worlds


def quick() -> list[World]:
    """A few worlds of every kind."""
    return [
        replace(ALIKE, name="off the lattice, 8 seeds"),
        World("3 points apart, unequal, 12 seeds", seeds=12, effects=(0.03, -0.03), **UNEQUAL),
        World("floor, scores of 1 %, 8 seeds", score=0.01, spread=(0.003,), step=(0.001,), items=0.004, margin=0.02),
    ]


def until_decided() -> list[tuple[World, str]]:
    """Worlds in which seeds are added until every arm is decided, from 3 to 30, each with its estimand."""
    alike: dict[str, dict[str, Any]] = {
        "off the lattice": {},
        "on the lattice": {"on_grid": True},
        "unequal spreads and curves": UNEQUAL,
        "unequal, on the lattice": UNEQUAL | {"on_grid": True},
        "unequal, quiet reference, own validation": UNEQUAL | OWN | {"reference_spread": 0.008},
        "steep, 3 points a step": {"step": (0.03,)},
        "cliff above the peak, unequal": UNEQUAL | {"cliff": 3.0},
        "heavy tails, unequal": UNEQUAL | {"heavy": True},
        "bimodal reference": {"split": 0.03, "effects": (-0.015,) * 11},
        "bimodal reference, quiet arms": QUIET | {"split": 0.03, "effects": (-0.015,) * 11},
        "31 comparisons, unequal": UNEQUAL | {"arms": 31},
    }
    apart: dict[str, dict[str, Any]] = {
        "3 points apart": {},
        "3 points apart, on the lattice": {"on_grid": True},
        "3 points apart, unequal": UNEQUAL,
        "3 points apart, heavy tails": {"heavy": True},
    }
    worlds = [(name, changes, "method") for name, changes in alike.items()]
    worlds += [(name, {"effects": (0.03, -0.03)} | changes, "method") for name, changes in apart.items()]
    worlds += [("every rate alike", {"step": (0.0,)}, "rate"), ("every rate alike, 3 points apart",
               {"step": (0.0,), "effects": (0.03, -0.03)}, "rate")]  # fmt: skip
    return [(World(f"until decided, {name}", seeds=30, **changes), estimand) for name, changes, estimand in worlds]


def favoured() -> list[World]:
    """Equal peaks, of which some arms and rates are favoured by the test items in every run."""
    return [World(f"items favour arms, {seeds} seeds", seeds=seeds) for seeds in (8, 16)] + [
        World("items favour arms, unequal, 8 seeds", **UNEQUAL)
    ]


def spreads() -> dict[str, World]:
    """Worlds for the moderated t: every rate alike, two arms 3 points apart, spreads alike or fourfold different."""
    flat: dict[str, Any] = {"step": (0.0,), "effects": (0.03, -0.03)}
    kinds: dict[str, dict[str, Any]] = {
        "spreads alike": {},
        "spreads fourfold different": {"spread": (0.008, 0.032)},
        "one arm in four four times as noisy": {"spread": (0.008, 0.008, 0.008, 0.032), "reference_spread": 0.008},
    }
    return {
        f"{name}, {seeds} seeds": World(f"moderated, {name}, {seeds} seeds", seeds=seeds, **flat, **changes)
        for name, changes in kinds.items()
        for seeds in (3, 5, 8)
    }


PRINTED = World("power at the printed effect", spread=(0.008, 0.014, 0.025))
"""Quiet, middle and noisy arms."""
LOOKED = World("looking after every seed from 3 to 20", seeds=20)

KNOWN = {
    "cliff above the peak": "a cliff lets the true peak lie farther above the lattice on one side",
    "steep": "between two rates of the lattice up to a quarter of a step's loss is hidden",
    "bimodal reference, quiet arms, 3 seeds": "three seeds show one kind of run only in a quarter of studies",
    "one run in ten collapses": "no interval covers a kind of run that did not occur in the seeds at hand",
}
"""Beginning of a world's name -> why a bound is, or may be, broken there."""
