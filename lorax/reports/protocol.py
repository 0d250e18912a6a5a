"""What a reader needs for a study's table: scores, differences, margin, when it was fixed, how its runs were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lorax.records import RunRecord
from lorax.reports import until_decided
from lorax.reports.frames.study import final_runs, test_scored
from lorax.reports.text import numbers
from lorax.stats.estimands import SPREAD, sentence
from lorax.studies.registration import digest
from lorax.studies.study import Study


def protocol(study: Study) -> list[str]:
    """Return the lines that a reader needs to read the results table: estimand, margin, MDE, p."""
    spec, result = study.spec, study.result
    runs = final_runs(study)
    metrics = ", ".join(dict.fromkeys(str(r.task.get("metric")) for r in runs if r.task.get("metric")))
    lines = [
        f"Scores: {metrics or spec.metric} (`{spec.metric}` of the records) in per cent on the test split, scored once "
        f"a final run; {_own(study)}. Rows that share a "
        f"letter are not separated: from {spec.reference} as the verdict says, the others by Holm's procedure.",
        f"Differences are to {spec.reference}, over shared seeds; one procedure ({spec.procedure}) gives interval and "
        f"verdict, corrected over {spec.family} comparisons at {100 * spec.alpha:g} %; margin of {_aim(study)} "
        f"{numbers.points(spec.margin)} points; detectable: the difference that a row's own spread would show with "
        f"80 % power. {_fixed(study)}",
        *_claim(study),
        *_launched(list({run.run_id: run for run in test_scored(study)}.values())),
        *_beside(study),
    ]
    if spec.until_decided is not None:
        lines[:2] = [lines[0].partition(" Rows that")[0], f"{until_decided.protocol(study)} {_fixed(study)}"]
    given = spec.until_decided is not None and spec.estimand == "method"
    lines.insert(0, until_decided.METHOD if given else sentence(spec.estimand, spec.tuning is not None))
    if result is None:
        return [*lines, f"{spec.reference} has no final run yet: nothing can be compared."]
    return lines + result.design.sentences(SPREAD[spec.estimand]) + list(result.notes)


def _own(study: Study) -> str:
    """Return what an arm's own score and interval are."""
    confidence = f"{100 * (1 - study.spec.alpha):g} %"
    if study.spec.estimand == "rate":
        return f"mean over seeds and its t interval at {confidence}"
    return (
        f"mean over seeds at the rate that validation picks, and from the low end of its t interval at {confidence} to "
        "the highest end of any rate (∞: the pick lies at the edge of what was run)"
    )


def _aim(study: Study) -> str:
    """Return what the margin is of."""
    return "non-inferiority" if study.spec.claim == "non_inferior" else "equivalence"


def _claim(study: Study) -> list[str]:
    """Say what a study that claims non-inferiority tests, and at which level."""
    if study.spec.claim != "non_inferior":
        return []
    spec = study.spec
    return [
        f"Claim: non-inferior, not worse than {spec.reference} by {numbers.points(spec.margin)} points: the lower end "
        f"of the interval alone decides, one-sided at {50 * spec.alpha:g} % over the {spec.family} comparisons; with "
        f"better and worse, any false verdict at {100 * spec.alpha:g} %. Nothing is called equivalent."
    ]


def _beside(study: Study) -> list[str]:
    """Count the runs of arms that no row rests on: whoever reads "scored once" and "trials" has to know of them."""
    test = [record for record in study.unasked if record.score("test") is not None]
    others = [record for record in study.unasked if record.score("test") is None]
    parts = []
    for records, what in ((test, "scored on test"), (others, "on validation alone")):
        if records:
            arms = Counter(record.label or "without a label" for record in records)
            parts.append(f"{len(records)} {what} ({', '.join(f'{arm} {n}' for arm, n in arms.items())})")
    scored = len({record.run_id for record in test_scored(study)})
    return [f"Beside {scored} test-scored runs in rows there are runs in none: {'; '.join(parts)}."] if parts else []


def _fixed(study: Study) -> str:
    """Say when the design was fixed, and how many runs had started by then."""
    known, finals = f"design {digest(study.spec)}", test_scored(study)
    if study.fixed_at is None:
        return f"When all this was fixed ({known}) is not written down."
    runs = [*finals, *(trial.record for trial in study.trials), *study.costs.values()]
    early = {record.run_id for record in runs if (record.provenance.get("started") or study.fixed_at) < study.fixed_at}
    if not early:
        return f"All this was fixed on {study.fixed_at} ({known}), before the first run."
    return (
        f"All this was fixed on {study.fixed_at} ({known}), when {len(early)} of {len(runs)} runs had started, "
        f"{sum(record.run_id in early for record in finals)} of them final ones."
    )


def _launched(runs: Sequence[RunRecord]) -> list[str]:
    """Say which launcher the final runs went through, how many lanes their packs had, and what that means for them."""
    names = sorted({str(name) for run in runs if (name := run.provenance.get("launcher"))})
    lanes = sorted(len(pack["lanes"]) for run in runs if (pack := run.provenance.get("pack")))
    if not names:
        return []
    if not lanes:
        return [f"Launcher {' and '.join(names)}: every final run was trained alone."]
    sizes = f"{lanes[0]}" if lanes[0] == lanes[-1] else f"{lanes[0]} to {lanes[-1]}"
    close = [f"{dtype} within about {EQUAL_TO[dtype]}" for dtype in EQUAL_TO if dtype in {_dtype(run) for run in runs}]
    alone = len(runs) - len(lanes)
    return [
        f"Launcher {' and '.join(names)}: {len(lanes)} final runs in packs of {sizes}"
        + (f", {alone} alone. " if alone else ". ")
        + "A packed run has the id of the same run alone, and its losses up to rounding"
        + (f": {', '.join(close)}." if close else ".")
    ]


def _dtype(run: RunRecord) -> str:
    return str(run.identity.get("dtype") or run.model.get("dtype"))


EQUAL_TO = {"float64": "1e-12", "float32": "1e-5", "bf16-autocast": "1e-3"}
"""Precision -> how far a packed run's test loss may lie from that of the same run alone, where it was measured.

AdaLoRA under bf16 lies further: it prunes by the order of close scores."""
