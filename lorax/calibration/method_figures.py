"""The part of the calibration that reads verdicts as method against method: its figures as plain data, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lorax.calibration import method_worlds, written
from lorax.calibration.methods import ALPHA, detected, measure, peeked, stopped
from lorax.calibration.report import percent, table, yes
from lorax.calibration.worlds import World

POWER = (0.74, 0.88)


def figures(quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Measure everything that the page says about estimands `method` and `rate`.

    Args:
        quick: a few worlds with 200 tables.
        seed: of the simulation.
    """
    tables = 200 if quick else 2000
    equal = method_worlds.quick() if quick else method_worlds.equal_peaks()
    differing = [] if quick else method_worlds.differing()
    small = replace(method_worlds.ALIKE, name="written", arms=4, seeds=5, effects=(0.05,), **method_worlds.UNEQUAL)
    return {
        "tables": tables,
        "equal": _rows([world for world in equal if not world.effects], tables, seed),
        "differing": _rows([*differing, *(world for world in equal if world.effects)], tables, seed),
        "detected": [] if quick else [r for e in ("method", "rate") for r in _detected(tables, seed, e)],
        "peeked": {} if quick else peeked(method_worlds.LOOKED, tables // 4, seed),
        "stopped": {}
        if quick
        else {name: stopped(world, tables // 5, seed) for name, world in method_worlds.stopping().items()},
        "incomplete": {}
        if quick
        else {
            words: written.incomplete(method_worlds.ALIKE, tables // 10, missing, seed)
            for words, missing in (
                ("every other arm lacks three of eight seeds", written.every_other_short),
                ("the worst run of an arm is lost, one time in two", written.worst_lost),
            )
        },
        "written": [
            {"estimand": estimand, **written.agreement(small, 1 if quick else 40, seed, estimand)}
            for estimand in ("method", "rate")
        ],
    }


def _rows(worlds: Sequence[World], tables: int, seed: int) -> list[dict[str, Any]]:
    out = []
    for world in worlds:
        many = tables // 2 if world.seeds > 12 or world.arms > 20 else tables
        known = next((why for start, why in method_worlds.KNOWN.items() if world.name.startswith(start)), "")
        for row in measure(world, many, seed):
            plain = row.plain()
            out.append(plain | {"named": known, "pass": row.estimand == "rate" or not broken(plain)})
    return out


def broken(row: dict[str, Any]) -> list[str]:
    """Return in words the bounds that a row breaks, by more than three Monte Carlo errors.

    At most 5 % false tables, at least 93 % coverage of the best lattice points, at most 5 % of arms that differ by the
    margin called equivalent.
    """
    slack = 3 * (ALPHA * (1 - ALPHA) / row["tables"]) ** 0.5
    words = []
    if row["false_tables"] > ALPHA + slack:
        words.append(f"{percent(row['false_tables'])} of studies with a false difference")
    if row["coverage"] < 0.93 - slack:
        words.append(f"coverage {percent(row['coverage'])}")
    if (row["false_equivalent"] or 0) > ALPHA + slack:
        words.append(f"{percent(row['false_equivalent'])} of arms that differ called equivalent")
    return words


def not_kept(found: dict[str, Any]) -> list[str]:
    """Return a sentence for each world in which estimand `method` breaks a bound."""
    return [
        f"{row['world']}: {', '.join(broken(row))}" + (f" ({row['named']})." if row["named"] else ".")
        for row in found["equal"] + found["differing"]
        if not row["pass"]
    ]


def _detected(tables: int, seed: int, estimand: str) -> list[dict[str, Any]]:
    return detected(method_worlds.PRINTED, tables, seed, estimand)


def kept(found: dict[str, Any]) -> bool:
    """Whether estimand `method` kept its level in every world that is not named, and written records say the same."""
    rows = found["equal"] + found["differing"]
    level = all(row["pass"] or row["named"] for row in rows)
    return level and all(part["equal"] == part["verdicts"] for part in found["written"])


def text(found: dict[str, Any]) -> list[str]:
    """Return the page's paragraphs on verdicts about methods.

    Args:
        found: from `figures`.
    """
    parts = [
        "## Method against method",
        "Every arm has a curve over learning rates with its peak on or between the points of the lattice; a pilot of "
        "two other seeds finds the first rate. Estimand `method`: every seed runs three rates or more and the "
        "best-rate interval decides. Estimand `rate`: the selected rate alone, with verdicts *read* as if they were "
        "about methods, which they do not claim. Curves lose 2 points a step and runs spread by 1.4 points where "
        "nothing else is said; "
        f"eleven comparisons, {found['tables']} studies a row (half as many with 16 seeds or more comparisons). "
        "False, peaks: studies in which an arm of the reference's peak is called better or worse (or one that differs, "
        "with the wrong sign); should be 5 % at most. False, lattice: the same against the best lattice points, which "
        "is what `method` promises. Coverage: single 95 % intervals, lattice. Half: their half width in points.",
        _level(found["equal"]),
    ]
    if found["differing"]:
        parts += [
            "Arms that differ. Found: differing arms called better or worse, of those that differ. Called equivalent "
            "although the peaks are the margin or more apart: of such arms.",
            _found(found["differing"]),
        ]
    if found["detected"]:
        parts += [
            "Power at the difference that a row prints as detectable (80 % meant), for quiet, middle and noisy arms "
            "against a quiet reference; under `rate` the selected rate falls short of the peak, so that less is found.",
            table(
                ["estimand", "sd of the arm's runs", "printed, points", "found"],
                [
                    [r["estimand"], f"{100 * r['spread']:.1f}", f"{100 * r['effect']:.1f}", percent(r["found"])]
                    for r in found["detected"]
                ],
            ),
        ]
    if found["peeked"]:
        looked = found["peeked"]
        parts += [
            "Looking at the verdicts after every seed from 3 to 20, equal peaks off the lattice, and stopping at the "
            f"first difference: false in {percent(looked['method'])} of studies under `method`, "
            f"{percent(looked['rate'])} under `rate`. Looking at 5 seeds and going on to the number that the report "
            f"says would decide, under `rate`: {percent(looked['followed'])}. **Neither estimand allows looking "
            "twice**; the promised 5 % hold for a number of seeds that was fixed before.",
        ]
    if found.get("stopped"):
        parts += [
            "Looking after every seed from 3 to 30 by the e-process of `lorax.stats.sequential` and stopping an arm "
            "when it is decided (three rates an arm; no study runs by it yet). Median: seeds at which half of the "
            "differing arms are decided.",
            table(
                ["world", "false, peaks", "found", "median seeds"],
                [
                    [name, percent(r["false"]), percent(r["found"]), _seeds(r["median"])]
                    for name, r in found["stopped"].items()
                ],
            ),
        ]
    if found["incomplete"]:
        parts += [
            "Runs that are missing, equal peaks off the lattice, 8 seeds, through `judge`:",
            table(
                ["missing", "false, method", "false, rate"],
                [[words, percent(r["method"]), percent(r["rate"])] for words, r in found["incomplete"].items()],
            ),
        ]
    if not_kept(found):
        parts += ["**Bounds that `method` does not keep:**", "\n".join(f"- {line}" for line in not_kept(found))]
    counted = ", ".join(f"{r['estimand']} {r['equal']} of {r['verdicts']}" for r in found["written"])
    return [
        *parts,
        "These studies are arrays; picks, intervals, levels and refusals come from the functions that the tables call. "
        "Some of the studies were also written as records, run by run as their rounds ask, and read back as any study "
        f"is: verdict, interval and p-value are equal in {counted}.",
    ]


def _level(rows: Sequence[dict[str, Any]]) -> str:
    head = ["world", "estimand", "false, peaks", "false, lattice", "coverage", "half", "equivalent", "kept"]
    return table(
        head,
        [
            [
                row["world"],
                row["estimand"],
                f"{percent(row['false_tables'])} +- {100 * row['error']:.1f}",
                percent(row["false_lattice"]),
                percent(row["coverage"]),
                _points(row["half"]),
                percent(row["equivalent"]),
                "-" if row["estimand"] == "rate" else yes(row["pass"]) + (f": {row['named']}" * (not row["pass"])),
            ]
            for row in rows
        ],
    )


def _found(rows: Sequence[dict[str, Any]]) -> str:
    return table(
        ["world", "estimand", "found", "false, peaks", "falsely equivalent", "coverage", "half"],
        [
            [
                row["world"],
                row["estimand"],
                "-" if row["found"] is None else percent(row["found"]),
                f"{percent(row['false_tables'])} +- {100 * row['error']:.1f}",
                "-" if row["false_equivalent"] is None else percent(row["false_equivalent"]),
                percent(row["coverage"]),
                _points(row["half"]),
            ]
            for row in rows
        ],
    )


def _seeds(value: float | None) -> str:
    return "more than 30" if value is None else f"{value:g}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
