"""The story of a run, top to bottom, for one configuration or for K that share a frozen base.

configuration -> task -> identity -> claim -> model -> factors -> adapters -> training ->
evaluation -> record. A single run is one lane. No step asks which method is running.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lorax.config import RunConfig
from lorax.errors import UserError
from lorax.records import Unwritable
from lorax.running.messages import one_line
from lorax.running.prepared import Ready, blank, describe, now, ready


def run_lanes(
    configs: Sequence[RunConfig],
    provenance: dict[str, Any] | None = None,
    show: bool = False,
    overrides: Sequence[list[str]] | None = None,
) -> list[dict[str, Any]]:
    """Run configurations on one frozen base, each as it would run alone; write each one's record.

    Args:
        configs: K runs that agree on model, task, data seed, precision and batch shape.
        provenance: what the launcher adds to the records.
        show: print the summary of a single run and raise on bad input, instead of recording it.
        overrides: each lane's own command-line overrides, for its provenance.

    Returns:
        For each: status, run_id, message, skipped.
    """
    lanes = [ready(config) for config in configs]
    for lane, words in zip(lanes, overrides or [], strict=False):
        lane.overrides = words
    with ExitStack() as stack:
        todo = []
        for lane in sorted({lane.run_id: lane for lane in lanes}.values(), key=lambda lane: lane.run_id):
            found = stack.enter_context(lane.store.claim(lane.config.name, lane.run_id))
            if found is None:
                todo.append(lane)
            else:
                print(f"{lane.run_id} {describe(lane)}: finished before, skipped")
        if todo:
            todo.sort(key=lambda lane: [other.run_id for other in lanes].index(lane.run_id))
            _attempt(todo, provenance or {}, show)
    if show:
        _summarise(lanes[0])
    return [_result(lane) for lane in lanes]


def _result(lane: Ready) -> dict[str, Any]:
    record = lane.store.get(lane.config.name, lane.run_id)
    status = record.status if record else "failed"
    return {"run_id": lane.run_id, "status": status, "message": record.error if record else "no record"}


def _attempt(lanes: list[Ready], provenance: dict[str, Any], show: bool) -> None:
    """Do the work; what goes wrong is recorded as failed with its message."""
    started = now()
    try:
        from lorax.running.execute import execute

        execute(lanes, provenance | {"started": started}, show)
    except Unwritable:
        raise  # nor could this be recorded; the rest of a sweep would end the same way
    except Exception as error:
        if show and isinstance(error, UserError):
            raise
        for lane in lanes:
            if lane.store.finished(lane.config.name, lane.run_id) is None:
                lane.store.write(blank(lane, "failed", one_line(error), provenance | {"started": started}))
        if show:
            raise


def _summarise(lane: Ready) -> None:
    from lorax.reports.write import write_table
    from lorax.running.summary import show_summary

    record = lane.store.get(lane.config.name, lane.run_id)
    if record is None or record.status == "failed":
        return
    _, paths = write_table(lane.store, lane.config.name)
    show_summary(lane.store, record, [Path(path) for path in paths])
