"""The part of the calibration that reads verdicts as method against method: its figures as plain data, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lorax.calibration import item_effects, method_worlds, moderated, until_decided, written
from lorax.calibration import method_tables as extra
from lorax.calibration.methods import ALPHA, detected, measure, peeked
from lorax.calibration.report import percent, table, with_error, yes
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
        "until_decided": [] if quick else until_decided.rows(method_worlds.until_decided(), tables // 5, seed),
        "items": [] if quick else item_effects.rows(method_worlds.favoured(), tables // 2, seed),
        "moderated": [] if quick else moderated.compared(method_worlds.spreads(), 2 * tables, seed),
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
        "written_looks": written.same_looks(
            replace(small, arms=2, seeds=5) if quick else replace(small, seeds=8), 1 if quick else 10, seed
        ),
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
    ] + [
        f"{row['world']}: {percent(row['false'])} of studies with a false difference at some look."
        for row in found.get("until_decided", ())
        if _too_often(row)
    ]


def _too_often(row: dict[str, Any]) -> bool:
    return bool(row["false"] > ALPHA + 3 * (ALPHA * (1 - ALPHA) / row["tables"]) ** 0.5)


def _detected(tables: int, seed: int, estimand: str) -> list[dict[str, Any]]:
    return detected(method_worlds.PRINTED, tables, seed, estimand)


def kept(found: dict[str, Any]) -> bool:
    """Whether estimand `method` kept its level in every world that is not named, and written records say the same."""
    rows = found["equal"] + found["differing"]
    level = all(row["pass"] or row["named"] for row in rows)
    level &= not any(_too_often(row) for row in found.get("until_decided", ()))
    parts = [*found["written"], *([found["written_looks"]] if "written_looks" in found else [])]
    return level and all(part["equal"] == part["verdicts"] for part in parts)


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
        "is what `method` promises. Coverage: single 95 % intervals, lattice. Half: their half width in points. After "
        "+-: Monte Carlo error, one sd; that of a coverage is at most 1 point.",
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
                    [
                        r["estimand"],
                        f"{100 * r['spread']:.1f}",
                        f"{100 * r['effect']:.1f}",
                        with_error(r["found"], found["tables"]),
                    ]
                    for r in found["detected"]
                ],
            ),
        ]
    if found["peeked"]:
        looked = {name: with_error(share, found["tables"] // 4) for name, share in found["peeked"].items()}
        parts += [
            "Looking at the verdicts after every seed from 3 to 20, equal peaks off the lattice, and stopping at the "
            f"first difference: false in {looked['method']} of studies under `method`, "
            f"{looked['rate']} under `rate`. Looking at 5 seeds and going on to the "
            f"number that would decide at the present estimate, under `rate`: "
            f"{looked['followed']}. **Neither estimand allows looking twice** with a "
            "fixed number of seeds; `seeds: until_decided` does, below.",
        ]
    if found.get("until_decided"):
        parts += extra.until_decided(found["until_decided"], found["written_looks"])
    if found.get("items"):
        parts += extra.items(found["items"])
    if found.get("moderated"):
        parts += extra.moderated(found["moderated"])
    if found["incomplete"]:
        parts += [
            f"Runs that are missing, equal peaks off the lattice, 8 seeds, {found['tables'] // 10} studies a row, "
            "through `judge`:",
            table(
                ["missing", "false, method", "false, rate"],
                [
                    [words, *(with_error(r[estimand], found["tables"] // 10) for estimand in ("method", "rate"))]
                    for words, r in found["incomplete"].items()
                ],
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
                with_error(row["false_tables"], row["tables"]),
                with_error(row["false_lattice"], row["tables"]),
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
                "-" if row["found"] is None else with_error(row["found"], row["tables"]),
                with_error(row["false_tables"], row["tables"]),
                "-" if row["false_equivalent"] is None else with_error(row["false_equivalent"], row["tables"]),
                percent(row["coverage"]),
                _points(row["half"]),
            ]
            for row in rows
        ],
    )


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
