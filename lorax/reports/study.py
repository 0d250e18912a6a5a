"""The report of a study: tables in four formats, figures, and the conclusions in words."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lorax.records import Store, write_atomic
from lorax.reports import conclusions, diagnostics, measures, over_tasks, ranks
from lorax.reports.audit.audit import foot
from lorax.reports.columns import Column, table
from lorax.reports.figures.study import draw_all, left_out, save_all
from lorax.reports.frames.asymmetries import footnotes
from lorax.reports.frames.diagnostics import diagnostics_frame
from lorax.reports.frames.factor_lines import Line
from lorax.reports.frames.items import descriptions, item_scores
from lorax.reports.frames.measures import frame as measures_frame
from lorax.reports.frames.ranks import by_rank
from lorax.reports.frames.speed import speeds
from lorax.reports.frames.study import asymmetries, by_arm, factors, final_runs, tuning_frame
from lorax.reports.main_table import blocks, main_table, score_columns, select, setting_columns, study_rows
from lorax.reports.protocol import protocol
from lorax.reports.sweep import read_sweep
from lorax.reports.text import html, latex, markdown, numbers
from lorax.reports.text.cells import to_csv, to_json
from lorax.reports.text.document import Document, Part, Picture, Table
from lorax.reports.threats import threats
from lorax.stats.estimands import ESTIMANDS
from lorax.stats.result import StudyResult
from lorax.stats.sign_flips import attainable
from lorax.studies.registration import frozen, frozen_path
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
    if len(cut := by_rank(final_runs(study), "test", study.spec.metric)):
        pages["ranks.csv"] = to_csv(cut)
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
    if study.result is not None:
        parts.append(Part("What was found", conclusions.verdicts(study.result)))
        parts.append(Part("What is undecided", conclusions.undecided(study.result) or ["Nothing."]))
    if numbered:
        parts.append(Part("Asymmetries between rows", numbered))
    parts.append(Part("Threats to validity", threats(study, differences)))
    fixed = conclusions.fixed_rate(tuning_frame(study), study.spec.reference, study.spec.margin)
    if fixed:
        parts.append(Part("What a fixed learning rate would have shown", fixed))
    parts.append(Part("Settings and costs", _cost_lines(study), settings))
    parts.append(Part("Tuning", conclusions.tuning(study)))
    if study.windows:
        parts.append(Part("Windows of rates", conclusions.windows(study)))
    parts += [part for part in _descriptions(study, described) if part is not None]
    if pictures:
        parts.append(Part("Figures", left_out(study), pictures=pictures))
    if audited:
        parts.append(Part("Audit", audited))
    return Document(study.spec.name, parts, study.spec.question)


def _descriptions(study: Study, described: pd.DataFrame) -> list[Part | None]:
    """Return the parts on which no verdict rests."""
    diagnosed = diagnostics_frame(by_arm(study))
    return [
        ranks.part(by_rank(final_runs(study), "test", study.spec.metric)),
        measures.search_part(study),
        measures.part(study, measures.beside(study)),
        measures.sensitivity_part(study),
        measures.speed_part(study, speeds(study)),
        _description(described, study) if len(described) else None,
        diagnostics.part(diagnosed, by_arm(study)) if len(diagnosed) else None,
    ]


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
