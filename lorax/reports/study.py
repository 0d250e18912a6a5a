"""The report of a study: tables in four formats, figures, and the conclusions in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lorax.records import RunRecord, Store, write_atomic
from lorax.reports import conclusions, diagnostics, measures, over_tasks, until_decided
from lorax.reports.audit.audit import foot
from lorax.reports.columns import Column, table
from lorax.reports.figures.study import draw_all, left_out, save_all
from lorax.reports.frames.asymmetries import footnotes
from lorax.reports.frames.diagnostics import diagnostics_frame
from lorax.reports.frames.factor_lines import Line
from lorax.reports.frames.items import descriptions, item_scores
from lorax.reports.frames.measures import frame as measures_frame
from lorax.reports.frames.speed import speeds
from lorax.reports.frames.study import asymmetries, by_arm, factors, final_runs, test_scored, tuning_frame
from lorax.reports.main_table import blocks, main_table, score_columns, select, setting_columns, study_rows
from lorax.reports.sweep import read_sweep
from lorax.reports.text import html, latex, markdown, numbers
from lorax.reports.text.cells import to_csv, to_json
from lorax.reports.text.document import Document, Part, Picture, Table
from lorax.reports.threats import threats
from lorax.stats.estimands import ESTIMANDS, SPREAD, sentence
from lorax.stats.result import StudyResult
from lorax.stats.sign_flips import attainable
from lorax.studies.registration import digest, frozen, frozen_path
from lorax.studies.study import Study, read_study


def write_study(store: Store, name: str) -> tuple[str, list[Path]]:
    """Rebuild all tables and figures of a study from its records alone.

    Writes tables/<name>.{md,csv,tex,html,json}, tables/<name>.measures.csv and figures/<name>/*.{png,svg}; a study
    that is not complete gets the same, with its gaps named.

    Returns:
        The Markdown text, and the paths written.

    Raises:
        UserError: no such study, no records, or the folder cannot be written.
    """
    study = read_study(frozen(store.root, name), store)
    scores, values = item_scores(study, store), main_table(study)
    drawings, folder = draw_all(study, scores, values), store.root / "figures" / name
    paths = save_all(drawings, folder)
    pictures = [Picture(drawn.caption, (folder / f"{drawn.name}.svg").read_bytes()) for drawn in drawings]
    report = document(study, descriptions(study, scores), pictures, foot(store, study))
    pages = {
        "md": markdown.render(report),
        "csv": to_csv(values),
        "tex": latex.render(report),
        "html": html.render(report),
    }
    told = measures_frame(measures.all_of(study))
    pages |= {"measures.csv": to_csv(told), "json": to_json({"rows": values, "measures": told})}
    for kind, text in pages.items():
        paths.append(store.root / "tables" / f"{name}.{kind}")
        write_atomic(paths[-1], text)
    return pages["md"], paths


def document(
    study: Study, described: pd.DataFrame, pictures: Sequence[Picture] = (), audited: Sequence[str] = ()
) -> Document:
    """Return the report: results, what they say, settings and costs, descriptions, threats, figures, the audit.

    Args:
        study: from `studies.study.read_study`.
        described: from `frames.items.descriptions`.
        pictures: the figures, for formats that can hold them.
        audited: what `audit.foot` says.
    """
    differences = asymmetries(study)
    lines, _ = footnotes(differences, study.spec.reference)
    numbered = [f"({place}) {line}" for place, line in enumerate(lines, start=1)]
    results, settings = _halves(study, numbered)
    parts = [Part("Results", protocol(study), results)]
    maps = factor_tables(factors(study))
    if maps:
        words = ["Mean test score ± SD over seeds, per cent (number of seeds)."]
        parts.append(Part("Rank down, alpha, zeta or gamma across", words, maps))
    if study.result is not None and (together := over_tasks.part(study.result)):
        parts.append(together)
    told = measures.part(study, measures.beside(study))
    parts += [told] if told else []
    if numbered:
        parts.append(Part("Asymmetries between rows", numbered))
    if study.result is not None:
        parts.append(Part("What was found", conclusions.verdicts(study.result)))
        parts.append(Part("What is undecided", conclusions.undecided(study.result) or ["Nothing."]))
    fixed = conclusions.fixed_rate(tuning_frame(study), study.spec.reference, study.spec.margin)
    if fixed:
        parts.append(Part("What a fixed learning rate would have shown", fixed))
    parts.append(Part("Settings and costs", _cost_lines(study), settings))
    parts.append(Part("Tuning", conclusions.tuning(study)))
    searched = measures.search_part(study)
    parts += [searched] if searched else []
    around = measures.sensitivity_part(study)
    parts += [around] if around else []
    fast = measures.speed_part(study, speeds(study))
    parts += [fast] if fast else []
    if study.windows:
        parts.append(Part("Windows of rates", conclusions.windows(study)))
    if len(described):
        parts.append(_description(described, study))
    diagnosed = diagnostics_frame(by_arm(study))
    if len(diagnosed):
        parts.append(diagnostics.part(diagnosed, by_arm(study)))
    parts.append(Part("Threats to validity", threats(study, differences)))
    if pictures:
        parts.append(Part("Figures", left_out(study), pictures=pictures))
    if audited:
        parts.append(Part("Audit", audited))
    return Document(study.spec.name, parts, study.spec.question)


def _halves(study: Study, numbered: Sequence[str]) -> tuple[list[Table], list[Table]]:
    """Return the main table's left and right halves: of each, one table per task and block."""
    rows, results, settings = study_rows(study), [], []
    about = ESTIMANDS[study.spec.estimand]
    for task in study.spec.tasks:
        for block, arms in blocks(study).items():
            title = f"{task}: {block}, {about}" if block else f"{task}, {about}"
            shown = select(rows, task, arms)
            left = score_columns(study.spec.claim, study.spec.until_decided is not None, study.spec.alpha)
            results.append(table(left, shown, title, numbered))
            settings.append(table(setting_columns(study.spec.estimand), shown, title))
    return results, settings


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


def factor_tables(lines: Mapping[str, Sequence[Line]]) -> list[Table]:
    """Return one table per task, method and factor: rank down, the factor's values across, mean ± SD over seeds.

    Args:
        lines: task -> its lines.
    """
    tables = []
    for task, of_task in lines.items():
        for method, factor in dict.fromkeys((line.method, line.factor) for line in of_task):
            panel = [line for line in of_task if (line.method, line.factor) == (method, factor)]
            values = sorted({value for line in panel for value in line.runs["value"]})
            body = [
                [f"r={line.rank}" + (f", {line.fixed}" if line.fixed else "")]
                + [numbers.mean_sd(line.scores_at(value)) for value in values]
                for line in panel
            ]
            tables.append(Table((factor, *(f"{value:g}" for value in values)), body, f"{task}: {method}"))
    return tables


def wandb_payload(store: Store, name: str) -> dict[str, Any]:
    """Return what a tracker logs for a study, or for a sweep.

    Returns:
        `rows`: one mapping per row of the table, plain values, null where nothing was measured. `figures`:
        name -> path of the PNG, those that `write_study` has written.
    """
    if frozen_path(store.root, name).is_file():
        values = main_table(read_study(frozen(store.root, name), store))
    else:
        values = read_sweep(store.read(name)).frame()
    rows = values.astype(object).where(values.notna(), None).to_dict("records")
    folder = store.root / "figures" / name
    return {"rows": rows, "figures": {path.stem: path for path in sorted(folder.glob("*.png"))}}


def _cost_lines(study: Study) -> list[str]:
    tuning = study.spec.tuning
    if tuning is None:
        lines = ["lr: the arm's own, or the task's base rate times the method's prior; nothing was tuned."]
    else:
        spent = "tuning runs spent"
        if tuning.halving:
            spent = "full-length tuning runs spent, after the short ones of the screening"
        where = "its window" if study.windows else "the grid"
        lines = [f"lr: selected on validation; an arrow marks a best rate at that end of {where}. trials: {spent}."]
        if study.windows:
            lines.append("rates: learning rates that every seed ran to the end, each scored on validation and test.")
    if study.spec.costs is not None:
        lines.append(
            f"init s, step ms and peak MB: a solo run of {study.spec.costs.steps} steps with a cold cache, one an arm. "
            "Trained counts include heads."
        )
    for arm in study.spec.arms:
        if arm.match is not None:
            key, value = arm.match.key, study.spec.matched.get(arm.label, {}).get(arm.match.key)
            lines.append(f"{arm.label}: {key}={value}, the nearest to the trained parameters of {arm.match.to}.")
    return lines


def _description(described: pd.DataFrame, study: Study) -> Part:
    reference, fixed = study.spec.reference, study.spec.until_decided is None
    columns: list[Column[Mapping[Hashable, Any]]] = [
        Column("", "arm", lambda line: f"{line['task']}: {line['arm']}"),
        Column("", "bootstrap 95 %", lambda line: (line["low"], line["high"]), _interval),
        Column("", "McNemar p < 5 %", lambda line: f"{line['mcnemar']} of {line['pairs']}"),
        Column("", "items gained", lambda line: line["gained"], "{:.1f}".format),
        Column("", "items lost", lambda line: line["lost"], "{:.1f}".format),
    ]
    if fixed:
        columns.append(Column("", "sign-flip p", lambda line: line["p_flip"], "{:.2g}".format))
    lines = [
        f"Descriptions only, against {reference}: two-level bootstrap (seeds and items) of the difference; pairs of "
        "checkpoints that an exact, uncorrected McNemar test tells apart; items only one of the two solves, a seed. "
        "No verdict rests on them: McNemar compares two checkpoints, not two methods."
    ]
    if fixed and study.result is not None:
        lines.append(_flips(study.result))
    return Part("Descriptions by item", lines, [table(columns, described.to_dict("records"))])


def _flips(result: StudyResult) -> str:
    """Say what the p of sign flips is, and the smallest that these seeds allow."""
    seeds = max((len(c.seeds) for c in result.comparisons), default=0)
    return (
        "Sign-flip p: exact, two-sided, of no difference, over all ways to give the per-seed differences their signs; "
        f"not corrected over the comparisons. With {seeds} seeds none is smaller than {attainable(seeds):.2g}."
    )


def _interval(ends: tuple[float, float]) -> str:
    return f"[{numbers.points(ends[0], True)}, {numbers.points(ends[1], True)}]"
