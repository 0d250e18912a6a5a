"""The page of the calibration: tables, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def render(figures: dict[str, Any], kept: bool, methods: Sequence[str] = (), named: Sequence[str] = ()) -> str:
    """Return the calibration as Markdown.

    Args:
        figures: from `calibrate`.
        kept: whether every bound is kept.
        methods: paragraphs about verdicts between methods, from `method_figures.text`.
        named: bounds that are known to be broken, from `method_figures.not_kept`.
    """
    swaps, (low, high) = figures["swaps"], figures["power"]
    parts = [
        "# Calibration of the verdicts",
        f"Written by `python -m lorax.calibration{' --quick' if figures['quick'] else ''}`; not edited by hand. "
        f"{figures['tables']} simulated studies a scenario, each with a reference and several arms, learning rates "
        "selected on simulated validation runs, final seeds on a test set whose true differences are known.",
        f"**{_kept(kept, len(named))}**",
        *methods,
        "## At the selected rates: paired t over seeds, stepped down",
        "False tables: share of studies with any false verdict (a difference that is none or has the other sign, an "
        "equivalence outside the margin); at most 5 %. Coverage: single 95 % intervals; 93 to 97 % (above only at "
        "floor and ceiling, where one item is the least spread assumed). Simultaneous: studies whose corrected "
        "intervals all hold the truth.",
        _chosen(figures["chosen"]),
        "## Power at the printed minimum detectable effect",
        "One arm is better by exactly the effect that the table prints as detectable with 80 % power. That effect is "
        f"worked out from an assumed spread and is an approximation; kept means found in {percent(low)} to "
        f"{percent(high)} of the studies. With three seeds the printed effect is so large that nobody should plan "
        "with it.",
        table(
            ["scenario", "printed effect, pp", "found", "kept"],
            [
                [p["scenario"], f"{100 * p['mde']:.2f}", percent(p["power"]), yes(p["pass"])]
                for p in figures["promises"]
            ],
        ),
        "## Why this procedure",
        "The same studies judged by the other candidates. The estimand is the expected score over training seeds on "
        "the test set at hand; an interval that takes items as the only unit ignores the seeds, the crossed model "
        "with so few seeds trusts its degrees of freedom too much.",
        _compared(figures["compared"]),
    ]
    if figures["bootstraps"]:
        parts += [
            "Coverage of 95 % percentile bootstraps, which the tables show as descriptions only:",
            _bootstraps(figures),
        ]
    rules = figures["rules"]
    parts += [
        "Why the levels of `lorax.stats.rule` and not Holm's own: with seven quiet arms exactly at the margin and one "
        "noisy arm alike, plain Holm over the smaller of the two p-values (difference, equivalence) gives "
        f"{percent(rules['plain'])} false tables, the stepped levels {percent(rules['stepped'])}.",
        "## Labels swapped in real records",
        "Final scores of studies run here, each arm's mean taken out, labels permuted within every seed: no arm "
        "differs from another, and the noise is what training really makes. One small data set has few distinct "
        "swaps; `up to` is the largest share among 50 data sets of its shape with normal seeds.",
        _swaps(swaps) if swaps else "No completed study has records here yet.",
        "## Beyond the model",
        "Seeds far from normal; reported, not a condition. A collapse that did not happen in the final seeds is in "
        "no interval: diverged runs are therefore listed in the tables, not averaged away in silence.",
        table(
            ["scenario", "false tables", "coverage"],
            [[row["scenario"], percent(row["false_tables"]), percent(row["coverage"])] for row in figures["stress"]],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _kept(kept: bool, named: int) -> str:
    if not kept:
        return "A bound is broken: see the rows marked NO."
    return f"Every bound is kept, but for {named} that the page names." if named else "Every bound is kept."


def _chosen(rows: Sequence[dict[str, Any]]) -> str:
    head = [
        "scenario",
        "false tables",
        "coverage",
        "simultaneous",
        "better",
        "worse",
        "equivalent",
        "undecided",
        "kept",
    ]
    return table(
        head,
        [
            [
                row["scenario"],
                f"{percent(row['false_tables'])} +- {100 * row['error']:.1f}",
                percent(row["coverage"]),
                percent(row["simultaneous"]),
                *(percent(row["verdicts"][name]) for name in ("better", "worse", "equivalent", "undecided")),
                yes(row["pass"]),
            ]
            for row in rows
        ],
    )


def _compared(rows: Sequence[dict[str, Any]]) -> str:
    return table(
        ["scenario", "candidate", "false tables", "coverage", "decided"],
        [
            [
                row["scenario"],
                row["candidate"],
                percent(row["false_tables"]),
                percent(row["coverage"]),
                percent(1 - row["verdicts"]["undecided"]),
            ]
            for row in rows
        ],
    )


def _bootstraps(figures: dict[str, Any]) -> str:
    names = [key for key in figures["bootstraps"][0] if key != "scenario"]
    return table(
        ["scenario", *names],
        [[row["scenario"], *(percent(row[name]) for name in names)] for row in figures["bootstraps"]],
    )


_SWAPPED = ("false_tables", "usual", "false_splits")


def _swaps(rows: Sequence[dict[str, Any]]) -> str:
    return table(
        ["study", "arms", "seeds", "swaps", "with a difference", "up to", "arm against itself, p < 0.05"],
        [[r["study"], r["arms"], r["seeds"], r["tables"], *(percent(r[key]) for key in _SWAPPED)] for r in rows],
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def percent(value: float) -> str:
    """Return a share in per cent, one decimal."""
    return f"{100 * value:.1f} %"


def with_error(value: float, studies: int) -> str:
    """Return a share of so many independent studies in per cent, with its Monte Carlo error."""
    share = min(max(value, 1 / studies), 1 - 1 / studies)
    return f"{percent(value)} +- {100 * (share * (1 - share) / studies) ** 0.5:.1f}"


def yes(kept: bool) -> str:
    """Return how a row says whether its bound is kept."""
    return "yes" if kept else "NO"
