"""Everything a study leaves to read: tables in four formats, figures, and the conclusion in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lorax.records import Store, write_atomic
from lorax.reports import conclusions, diagnostics
from lorax.reports.figures.diagnostics import diagnostics_frame
from lorax.reports.figures.study import by_arm, caption, draw_all, factors, left_out, save_all, tuning_frame
from lorax.reports.frames.asymmetries import footnotes
from lorax.reports.frames.factor_lines import pivots
from lorax.reports.frames.items import descriptions, item_scores
from lorax.reports.main_table import (
    SCORE_HEAD,
    SETTING_HEAD,
    asymmetries,
    blocks,
    main_table,
    score_cells,
    setting_cells,
)
from lorax.reports.sweep import comparison
from lorax.reports.text import html, numbers
from lorax.reports.threats import threats
from lorax.studies.registration import digest, frozen, frozen_path
from lorax.studies.study import Study, read_study


def write_study(store: Store, name: str) -> tuple[str, list[Path]]:
    """Rebuild all tables and figures of a study from its records alone.

    Writes tables/<name>.{md,csv,tex,html} and figures/<name>/*.{png,svg}; a study that is not
    complete gets the same, with its gaps named.

    Returns:
        The Markdown text, and the paths written.

    Raises:
        UserError: no such study, no records, or the folder cannot be written.
    """
    study = read_study(frozen(store.root, name), store)
    scores = item_scores(study, store)
    table = main_table(study)
    parts = sections(study, table, descriptions(study, scores))
    drawn = draw_all(study, scores, table)
    paths = save_all(drawn, store.root / "figures" / name)
    svgs = {caption(path.stem): path.read_bytes() for path in paths if path.suffix == ".svg"}
    shown = [*parts, html.Part("Figures", left_out(study), figures=html.pictures(svgs))]
    pages = {
        "md": as_markdown(study, parts),
        "csv": table.to_csv(index=False, lineterminator="\n"),
        "tex": as_latex(study, parts),
        "html": html.page(name, shown, study.spec.question),
    }
    for kind, text in pages.items():
        paths.append(store.root / "tables" / f"{name}.{kind}")
        write_atomic(paths[-1], text)
    return pages["md"], paths


def sections(study: Study, table: pd.DataFrame, described: pd.DataFrame) -> list[html.Part]:
    """Return the parts of the report in order: results, settings and costs, words, descriptions."""
    found = asymmetries(study)
    notes, _ = footnotes(found, study.spec.reference)
    numbered = [f"({place}) {line}" for place, line in enumerate(notes, start=1)]
    results, settings = [], []
    for task in study.spec.tasks:
        for title, arms in blocks(study).items():
            name = f"{task}: {title}" if title else task
            results.append(html.Table(SCORE_HEAD, score_cells(table, arms, task), name))
            settings.append(html.Table(SETTING_HEAD, setting_cells(table, arms, task), name))
    parts = [html.Part("Results", protocol(study), results)]
    maps = pivots(factors(study))
    if maps:
        words = ["Mean test score ± SD over seeds, per cent (number of seeds)."]
        parts.append(html.Part("Rank down, alpha, zeta or gamma across", words, maps))
    if numbered:
        parts.append(html.Part("Asymmetries between rows", numbered))
    if study.result is not None:
        parts.append(html.Part("What was found", conclusions.found(study.result)))
        parts.append(html.Part("What is undecided", conclusions.undecided(study.result) or ["Nothing."]))
    fixed = conclusions.fixed_rate(tuning_frame(study), study.spec.reference)
    if fixed:
        parts.append(html.Part("What a fixed learning rate would have shown", fixed))
    parts.append(html.Part("Settings and costs", _cost_lines(study), settings))
    parts.append(html.Part("Tuning", conclusions.tuning(study)))
    if len(described):
        parts.append(_description(described, study.spec.reference))
    measured = diagnostics_frame(by_arm(study))
    if len(measured):
        parts.append(diagnostics.part(measured, by_arm(study)))
    parts.append(html.Part("Threats to validity", threats(study, found)))
    return parts


def protocol(study: Study) -> list[str]:
    """Return the lines that a reader needs to read the results table: estimand, margin, MDE, p."""
    spec, result = study.spec, study.result
    runs = [record for found in study.finals.values() for record in found.values()]
    metrics = ", ".join(dict.fromkeys(str(r.task.get("metric")) for r in runs if r.task.get("metric")))
    lines = [
        f"Scores: {metrics or spec.metric} (`{spec.metric}` of the records) in per cent on the test split, scored once "
        f"a final run; mean over seeds and its t interval at {100 * (1 - spec.alpha):g} %. Rows that share a letter "
        "are not separated.",
        f"Differences are to {spec.reference}, over shared seeds; one procedure ({spec.procedure}) gives interval and "
        f"verdict, corrected over {spec.family} comparisons at {100 * spec.alpha:g} %; margin of equivalence "
        f"{numbers.points(spec.margin)} points. {_fixed(study)}",
    ]
    if result is None:
        return [*lines, f"{spec.reference} has no final run yet: nothing can be compared."]
    return lines + result.design.sentences() + list(result.notes)


def _fixed(study: Study) -> str:
    """Say when the design was fixed, and how many runs had started by then."""
    known = f"design {digest(study.spec)}"
    if study.fixed_at is None:
        return f"When all this was fixed ({known}) is not written down."
    finals = [record for found in study.finals.values() for record in found.values()]
    runs = [*finals, *(trial.record for trial in study.trials), *study.costs.values()]
    early = {record.run_id for record in runs if (record.provenance.get("started") or study.fixed_at) < study.fixed_at}
    if not early:
        return f"All this was fixed on {study.fixed_at} ({known}), before the first run."
    return (
        f"All this was fixed on {study.fixed_at} ({known}), when {len(early)} of {len(runs)} runs had started, "
        f"{sum(record.run_id in early for record in finals)} of them final ones."
    )


def as_markdown(study: Study, parts: list[html.Part]) -> str:
    """Return the report as Markdown."""
    blocks = [f"# {study.spec.name}"] + ([study.spec.question] if study.spec.question else [])
    for part in parts:
        blocks.append(f"## {part.title}")
        for table in part.tables:
            blocks += [f"### {table.title}"] if table.title else []
            blocks.append(numbers.markdown(table.head, table.body))
        if part.lines:
            blocks.append("\n".join(f"- {line}" for line in part.lines))
    return "\n\n".join(blocks) + "\n"


def as_latex(study: Study, parts: list[html.Part]) -> str:
    r"""Return the tables as LaTeX: `\input` it in a document that loads booktabs."""
    notes = [line for part in parts if part.title.startswith("Asymmetries") for line in part.lines]
    pieces = [
        f"% {study.spec.name}: needs \\usepackage{{booktabs}}; rebuild with `python -m lorax.tables {study.spec.name}`"
    ]
    for part in parts:
        for place, table in enumerate(part.tables):
            label = f"{study.spec.name}-{part.title.split()[0].lower()}-{place}".replace("_", "-")
            below = [*(part.lines if place == 0 else []), *(notes if part.title == "Results" else [])]
            title = f"{part.title}: {table.title}." if table.title else f"{part.title}."
            pieces.append(numbers.latex(table.head, table.body, title, label, below))
    return "\n".join(pieces)


def wandb_payload(store: Store, name: str) -> dict[str, Any]:
    """Return what a tracker logs for a study, or for the plain table of a sweep.

    Returns:
        `rows`: one mapping a table row, plain values, null where nothing was measured. `figures`:
        name -> path of the PNG, those that `write_study` has written.
    """
    if frozen_path(store.root, name).is_file():
        table = main_table(read_study(frozen(store.root, name), store))
    else:
        table = comparison(store.read(name))
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    folder = store.root / "figures" / name
    return {"rows": rows, "figures": {path.stem: path for path in sorted(folder.glob("*.png"))}}


def _cost_lines(study: Study) -> list[str]:
    tuning, lines = (
        study.spec.tuning,
        ["lr: the arm's own, or the task's base rate times the method's prior; nothing was tuned."],
    )
    if tuning is not None:
        spent = (
            "full-length tuning runs spent, after the short ones of the screening"
            if tuning.halving
            else "tuning runs spent"
        )
        lines = [f"lr: selected on validation; an arrow marks a best rate at that end of the grid. trials: {spent}."]
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


def _description(described: pd.DataFrame, reference: str) -> html.Part:
    def ends(line: dict[str, Any]) -> str:
        return f"[{numbers.points(line['low'], True)}, {numbers.points(line['high'], True)}]"

    body = [
        [f"{line['task']}: {line['arm']}", ends(line), f"{line['mcnemar']} of {line['pairs']}",
         f"{line['gained']:.1f}", f"{line['lost']:.1f}"]
        for line in described.to_dict("records")
    ]  # fmt: skip
    head = ("arm", "bootstrap 95 %", "McNemar p < 5 %", "items gained", "items lost")
    lines = [
        f"Descriptions only, against {reference}: two-level bootstrap (seeds and items) of the difference; pairs of "
        "checkpoints that an exact, uncorrected McNemar test tells apart; items only one of the two solves, a seed. "
        "No verdict rests on them: McNemar compares two checkpoints, not two methods."
    ]
    return html.Part("Descriptions by item", lines, [html.Table(head, body)])
