"""Rows as JSON and Markdown, and the table that compares them with the goals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.goals import GOALS, Goal
from benchmarks.harness import Plan, Row, Spread


def publish(name: str, question: str | None, rows: list[Row], path: Path | None, plan: Plan) -> str:
    """Write a benchmark's new rows, keep the old ones that were not measured again, and return its Markdown.

    Args:
        name: the benchmark.
        question: what it asks, its module's first paragraph.
        rows: what was measured now.
        path: the JSON file; the Markdown goes beside it. None writes nothing.
        plan: the command's options.
    """
    this_run = machine.facts() | {"quick": plan.quick}
    kept: dict[str, Any] = {"name": name, "runs": [], "rows": []}
    if path is not None and path.exists():
        kept = json.loads(path.read_text())
    fresh = [asdict(row) | {"run": len(kept["runs"])} for row in rows]
    new = {(row["case"], row["measure"]) for row in fresh}
    kept["question"] = " ".join((question or "").split())
    kept["rows"] = [row for row in kept["rows"] if (row["case"], row["measure"]) not in new] + fresh
    kept["runs"] = [*kept["runs"], this_run]
    _drop_unused_runs(kept)
    text = markdown(kept)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")
        path.with_suffix(".md").write_text(text)
    return text


def markdown(benchmark: dict[str, Any]) -> str:
    """Return a benchmark's rows as Markdown."""
    lines = [
        f"# {benchmark['name']}",
        "",
        benchmark["question"],
        "",
        "| case | figure | median | quartiles | by CPU time | rounds | run |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in sorted(benchmark["rows"], key=lambda row: row["case"]):
        value, unit = Spread(**row["value"]), row["unit"]
        spread = "" if value.n == 1 else f"{number(value.low)} - {number(value.high)}"
        mark = " *" if row["machine"].get("contended") else ""
        cpu = "" if row.get("cpu") is None else number(row["cpu"])
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(
            f"| {row['case']} | {row['measure']}{note} | {number(value.median)} {unit}{mark} | {spread} "
            f"| {cpu} | {value.n} | {row['run'] + 1} |"
        )
    lines += ["", "`*` others used more than 10 % of the cores meanwhile (or the hypervisor 2 %). Runs:", ""]
    lines += [f"{index + 1}. {_run(run)}" for index, run in enumerate(benchmark["runs"])]
    return "\n".join(lines) + "\n"


def write_index(folder: Path) -> str:
    """Write `index.md`: every goal, what was measured for it, and, where it was missed, why."""
    lines = [
        "# Benchmarks against their goals",
        "",
        "Written by `python -m benchmarks index` from the JSON files beside it. Ratios are medians of interleaved",
        "pairs; a difference below 5 % is a tie. `*`: the machine was shared meanwhile; ratios are then judged by CPU",
        "time, which does not feel the neighbours' share of the cores.",
        "",
        "| what | measured | goal | reached? | why not |",
        "|---|---:|---:|---|---|",
    ]
    for goal in GOALS:
        row = _find(folder, goal)
        if row is None:
            lines.append(f"| {goal.what} | not measured | {goal.bound} | - | {goal.why} |")
            continue
        measured, judged = _measured(row)
        reached = goal.reached(judged)
        why = "" if reached == "yes" else goal.why
        lines.append(f"| {goal.what} | {measured} | {goal.bound} | {reached} | {why} |")
    text = "\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.md").write_text(text)
    return text


def _measured(row: dict[str, Any]) -> tuple[str, float]:
    """Return a row's figure as text, and the number it is judged by."""
    value, contended = Spread(**row["value"]), bool(row["machine"].get("contended"))
    text = f"{number(value.median)} {row['unit']}".strip() + (" *" if contended else "")
    if contended and row.get("cpu") is not None:
        return f"{text} (by CPU time {number(row['cpu'])})", row["cpu"]
    return text, value.median


def number(value: float) -> str:
    """Return three significant digits.

    Examples:
        >>> number(1234.5), number(1.2345), number(0.000012), number(0)
        ('1234', '1.23', '1.2e-05', '0')
    """
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def _find(folder: Path, goal: Goal) -> dict[str, Any] | None:
    path = folder / f"{goal.benchmark}.json"
    if not path.exists():
        return None
    rows = json.loads(path.read_text())["rows"]
    return next((row for row in rows if (row["case"], row["measure"]) == (goal.case, goal.measure)), None)


def _drop_unused_runs(benchmark: dict[str, Any]) -> None:
    used = sorted({row["run"] for row in benchmark["rows"]})
    benchmark["runs"] = [benchmark["runs"][index] for index in used]
    for row in benchmark["rows"]:
        row["run"] = used.index(row["run"])


def _run(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in run["versions"].items() if value)
    units = ", ".join(run["units"]) or "no vector units known"
    openmp = " ".join(f"{key}={value}" for key, value in run.get("openmp", {}).items())
    place = run["gpu"] or f"{run['processor']}, {run['cores']} cores ({units}), {run['threads']} threads"
    command = f"{openmp} {run['command']}".strip()
    return f"`{command}`, {run['when'][:10]}, {place}, {versions}, commit {run['commit']}"
