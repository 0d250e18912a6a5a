"""A run from top to bottom, for one configuration or for a pack: K runs that share a frozen base.

configuration -> task -> identity -> claim -> model -> factors -> adapters -> training ->
evaluation -> record. A single run is a pack of one. No step asks which method is running.
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
from lorax.running.prepared import PreparedRun, now, prepare


def run_pack(
    configs: Sequence[RunConfig],
    provenance: dict[str, Any] | None = None,
    show: bool = False,
    overrides: Sequence[list[str]] | None = None,
) -> list[dict[str, Any]]:
    """Run configurations on one frozen base, each as it would run by itself; write each one's record.

    Args:
        configs: K runs that agree on model, task, data seed, precision and batch shape.
        provenance: what the launcher adds to the records.
        show: print the summary of a single run and raise on bad input, instead of recording it.
        overrides: each run's words on the command line, for its provenance.

    Returns:
        For each run: run_id, status, message.
    """
    runs = [prepare(config) for config in configs]
    for run, words in zip(runs, overrides or [], strict=False):
        run.overrides = words
    distinct = {run.run_id: run for run in runs}  # in the order of `configs`; a run's index is its lane
    for store, name in {(str(run.store.root), run.config.name): (run.store, run.config.name) for run in runs}.values():
        store.sweep(name)
    with ExitStack() as claims:
        missing = set()
        for key in sorted(distinct):  # claimed in one order everywhere: two processes never wait for each other
            if claims.enter_context(distinct[key].claim()) is None:
                missing.add(key)
            else:
                print(f"{key} {distinct[key].description}: finished before, skipped")
        if missing:
            _attempt([run for key, run in distinct.items() if key in missing], provenance or {}, show)
    if show:
        _summarise(runs[0])
    return [_result(run) for run in runs]


def _result(run: PreparedRun) -> dict[str, Any]:
    record = run.stored()
    status = record.status if record else "failed"
    return {"run_id": run.run_id, "status": status, "message": record.error if record else "no record"}


def _attempt(runs: list[PreparedRun], provenance: dict[str, Any], show: bool) -> None:
    """Do the work; what goes wrong is recorded as failed with its message."""
    provenance = provenance | {"started": now()}
    try:
        from lorax.running.execute import execute

        execute(runs, provenance, show)
    except Unwritable:
        raise  # a failure could not be recorded either; the rest of a sweep would end the same way
    except Exception as error:
        if show and isinstance(error, UserError):
            raise
        for run in runs:
            if not run.has_finished():
                run.fail(one_line(error), provenance)
        if show:
            raise


def _summarise(run: PreparedRun) -> None:
    from lorax.reports.write import write_table
    from lorax.running.summary import show_summary

    record = run.stored()
    if record is None or record.status == "failed":
        return
    _, paths = write_table(run.store, run.config.name)
    show_summary(run.store, record, [Path(path) for path in paths])
