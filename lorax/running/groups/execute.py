"""Train and score a run over several tasks on one loaded model, and write its one record."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.evaluation.evaluate import Item
from lorax.records import Unwritable
from lorax.records.integrity import SCORED, over_tasks
from lorax.running.device import Placement
from lorax.running.execute import build_factors, enter, open_cache
from lorax.running.groups.session import GroupSession
from lorax.running.launchers.memory import is_out_of_memory
from lorax.running.messages import one_line
from lorax.running.preflight import check_task_fits, class_names
from lorax.running.prepared import PreparedRun

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.models.registry import Loaded
    from lorax.training.run import Outcome

COMMON_SEED = 2**64
"""Added to the run's seed, which is below 2^63: what all tasks share under share=common starts from another A."""


def run_group(
    runs: list[PreparedRun], loaded: Loaded, placement: Placement, provenance: dict[str, Any], show: bool
) -> None:
    """Bring a run over several tasks to its record; `lorax.running.execute.Work`.

    Args:
        runs: one.
        loaded: the untouched model, with the classes of the first task.
        placement: device and precision.
        provenance: goes into that of the record.
        show: progress bars, and errors of the start are raised.
    """
    from lorax.models.registry import skeleton
    from lorax.training.costs import peak_mb, reset_peak

    [run] = runs
    parts = parts_of(run)
    bare = [skeleton(run.config.model, labels=class_names(part.task)) for part in parts]
    for part in parts:
        check_task_fits(part.config, part.task, loaded)
    for each in (run, *parts):
        each.begin(provenance)
        each.record.model |= {"dtype": placement.dtype, "attention": loaded.attention, "kind": loaded.kind}
    reset_peak(placement.device)
    start = time.perf_counter()
    try:
        common = _build(run, parts, loaded, bare)
    except Exception as error:
        if show or isinstance(error, Unwritable) or is_out_of_memory(error):
            raise
        run.fail(one_line(error), provenance)
        return
    run.record.costs["init_seconds"] = time.perf_counter() - start
    run.record.costs["init_peak_mb"] = peak_mb(placement.device)
    _train_and_score(run, parts, GroupSession(loaded, placement, run, parts, bare, common, open_cache(run), show))


def parts_of(run: PreparedRun) -> list[PreparedRun]:
    """Return the run on each of its tasks: with the run's settings, one task's data, and a place inside the run's."""
    specs = {name: config.task for name, config in run.config.parts().items()}
    own = {"digest", "version", "name"}
    return [
        replace(
            run,
            config=replace(run.config, task=specs[task.name]),
            task=task,
            identity=run.identity
            | {"task": {key: getattr(task, key) for key in sorted(own)}, "task_group": run.run_id},
            run_id=f"{run.run_id}/{task.name}",
            factors={},
            items=[],
        )
        for task in run.task.parts
    ]


def _build(run: PreparedRun, parts: list[PreparedRun], loaded: Loaded, bare: list[Loaded]) -> dict[str, Factors]:
    """Build the factors of every task; return those of the common term, where there is one."""
    from lorax.forward.heads import head_of

    for index, part in enumerate(parts):
        with head_of(bare[index], loaded) if loaded.head else nullcontext():
            part.factors = build_factors(part, loaded, run.initializer.of_task(index))
    if run.config.share != "common" or run.initializer.shared_by_tasks:
        return {}
    return build_factors(parts[0], loaded, seed=run.config.seed + COMMON_SEED)


def _train_and_score(run: PreparedRun, parts: list[PreparedRun], session: GroupSession) -> None:
    """Train, evaluate, record; then leave the base as it was."""
    try:
        session.check_space()
        step0_errors = session.step0_errors()
        outcomes = session.train()
        seconds = session.evaluate()
        for lane, part in enumerate(parts):
            enter(part, session, lane, step0_errors[lane], outcomes[lane], seconds)
        _put_together(run, parts, outcomes, session)
        session.save()
        _note_saved(run, parts)
        run.store.write_all([(run.record, run.items)])
        run.store.forget_state(run.config.name, run.run_id)
        session.log_results()
    finally:
        session.close()


def _put_together(run: PreparedRun, parts: list[PreparedRun], outcomes: list[Outcome], session: GroupSession) -> None:
    """Enter into the run's record what its tasks' have: T scores and their mean, one curve, one cost."""
    record, first, names = run.record, parts[0].record, [part.task.name for part in parts]
    record.status = outcomes[0].status
    told = [f"{name}: {outcome.error}" for name, outcome in zip(names, outcomes, strict=True) if outcome.error]
    record.error = "; ".join(told) or None
    record.curve = [session.curve.whole(rows) for rows in zip(*(outcome.curve for outcome in outcomes), strict=True)]
    record.init_report |= first.init_report
    record.init_report["step0_error"] = max(part.record.init_report["step0_error"] for part in parts)
    rules = {name: outcome.rule_report for name, outcome in zip(names, outcomes, strict=True) if outcome.rule_report}
    if rules:
        record.init_report["rule"] = rules
    record.costs |= first.costs | session.costs_together()
    record.provenance |= first.provenance
    for split in first.scores:
        record.scores[split] = _mean({part.task.name: part.record.scores[split] for part in parts})
        whole = split.partition("@")[0]  # test@4: the test items at rank 4
        record.task.setdefault("asked", {})[whole] = run.task.asked(whole, shots=not session.trains)
    run.items = [item for part_items in _numbered(run, parts) for item in part_items]


def _mean(scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the means over tasks of their scores, how many items there are in all, and each task's own."""
    means = {key: over_tasks([entry[key] for entry in scores.values()]) for key in SCORED}
    return {**means, "n": sum(entry["n"] for entry in scores.values()), "mean_over": "tasks", "tasks": scores}


def _numbered(run: PreparedRun, parts: list[PreparedRun]) -> list[list[Item]]:
    """Return the tasks' items, each with its task, and with its place in the split of the whole group."""
    before: dict[str, int] = {}
    numbered = []
    for part in parts:
        numbered.append(
            [{**item, "row": item["row"] + before.get(item["split"], 0), "task": part.task.name} for item in part.items]
        )
        for split in part.record.scores:
            before[split] = before.get(split, 0) + len(part.task.examples(split.partition("@")[0]))
    return numbered


def _note_saved(run: PreparedRun, parts: list[PreparedRun]) -> None:
    """Say in the run's record where its adapters are: a folder a task, which `lorax.load` takes alone."""
    told = [part.record.provenance for part in parts]
    if any("saved" in provenance for provenance in told):
        whole = all(provenance.get("saved") for provenance in told)
        run.record.provenance["saved"] = str(Path(str(run.config.save)) / run.run_id) if whole else None
    errors = [provenance["save_error"] for provenance in told if "save_error" in provenance]
    if errors:
        run.record.provenance["save_error"] = errors[0]
