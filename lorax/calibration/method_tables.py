"""The page's parts on seeds until decided, on test items that favour arms, and on the moderated t."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorax.calibration.report import percent, table, with_error

Rows = Sequence[dict[str, Any]]


def until_decided(rows: Rows, written: dict[str, Any]) -> list[str]:
    """Return the paragraphs on looking after every seed.

    Args:
        rows: from `until_decided.rows`.
        written: from `written.same_looks`.
    """
    return [
        "### Seeds until decided",
        "A look after every seed from 3 to 30 (`seeds: until_decided`), by the function that a study's rounds call; an "
        "arm stops when it is decided, the reference runs every seed, windows grow by validation. False, at any look: "
        "studies in which an arm of the reference's peak is called different, or one that differs with the wrong sign; "
        "5 % at most. Lattice: the same against the best lattice points. All inside: studies whose anytime intervals, "
        "corrected over the comparisons, all hold the difference of the best lattice points at the last look; 95 % at "
        "least. Found: differing arms called so, rightly. Median: seeds after which half of these are decided. Runs: "
        "final runs an arm, where 30 seeds at three rates are 90. Under `rate` every rate of an arm scores the same, "
        "so that a verdict at the selected rates is one about methods.",
        table(
            ["world", "estimand", "false, any look", "lattice", "all inside", "found", "median seeds", "runs an arm"],
            [
                [
                    row["world"].removeprefix("until decided, "),
                    row["estimand"],
                    f"{percent(row['false'])} +- {100 * row['error']:.1f}",
                    percent(row["false_lattice"]),
                    with_error(row["inside"], row["tables"]),
                    "-" if row["found"] is None else with_error(row["found"], 2 * row["tables"]),
                    _seeds(row),
                    f"{row['runs']:.0f}",
                ]
                for row in rows
            ],
        ),
        f"{_studies(rows)} studies a row. A run that is lost is waited for: no look leaves a seed out, so that runs "
        "that are missing because of their scores cannot bend it. A part of the studies was written as records, run by "
        "run as the rounds ask, and read back: verdict, seeds, both ends of the interval and the adjusted p are equal "
        f"in {written['equal']} of {written['verdicts']}.",
    ]


def items(rows: Rows) -> list[str]:
    """Return the paragraphs on item effects under estimand `method`.

    Args:
        rows: from `item_effects.rows`.
    """
    return [
        "### Test items that favour an arm",
        "Equal peaks, estimand `method`, eleven comparisons; the test items favour some arms and rates in every run "
        f"(sd 0.7 points). New items: of the same kind, where no arm is better. {rows[0]['tables']} studies a row. "
        "**The paired t speaks of this test set only**: read as about new items it errs, and more seeds make it worse; "
        "`procedure: crossed` is for that.",
        table(
            ["world", "procedure", "false, this test set", "coverage", "false, new items", "coverage, new items"],
            [
                [
                    row["world"].removeprefix("items favour arms, "),
                    row["procedure"],
                    with_error(row["false_here"], row["tables"]),
                    percent(row["coverage_here"]),
                    with_error(row["false"], row["tables"]),
                    percent(row["coverage"]),
                ]
                for row in rows
            ],
        ),
    ]


def moderated(rows: Rows) -> list[str]:
    """Return the paragraphs on the moderated t.

    Args:
        rows: from `moderated.compared`.
    """
    worst = max((row for row in rows if row["t"] == "moderated"), key=lambda row: row["false"])
    held = worst["false"] <= 0.065
    says = "It holds" if held else "**It is not shipped**: it finds far more where spreads are alike, and does not hold"
    return [
        "### A moderated t",
        "The variances of all comparisons shrunk towards each other (empirical Bayes, as in limma), at rates that all "
        "score the same; eleven comparisons, two of them 3 points apart, "
        f"{rows[0]['tables']} studies a row. {says} 5 % +- 1.5 where spreads differ fourfold.",
        table(
            ["spreads", "false, paired t", "false, moderated", "found, paired t", "found, moderated"],
            [
                [
                    plain["world"],
                    with_error(plain["false"], plain["tables"]),
                    with_error(other["false"], other["tables"]),
                    percent(plain["found"]),
                    percent(other["found"]),
                ]
                for plain, other in zip(rows[::2], rows[1::2], strict=True)
            ],
        ),
    ]


def _studies(rows: Rows) -> str:
    counts = sorted({row["tables"] for row in rows})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _seeds(row: dict[str, Any]) -> str:
    if row["found"] is None:
        return "-"
    return "more than 30" if row["median"] is None else f"{row['median']:g}"
