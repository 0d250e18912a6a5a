"""A pack whose base is spread over the processes of `torchrun`: each brings its part of the runs to their records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from lorax.running.device import resolve_placement
from lorax.running.execute import run_loaded
from lorax.running.messages import one_line
from lorax.running.preflight import check_task_fits, class_names
from lorax.running.prepared import PreparedRun, now
from lorax.running.sharding.processes import any_of, group, merged, mine
from lorax.running.sharding.spread import load_whole, spread

Result = dict[str, Any]


def run_spread(
    runs: Sequence[PreparedRun], provenance: dict[str, Any], show: bool, result: Callable[[PreparedRun], Result]
) -> list[Result]:
    """Run a pack, the frozen base first where it is wanted; every process calls this with the same runs.

    Args:
        runs: of the pack.
        provenance: goes into that of each record.
        show: progress bars.
        result: reads what became of a run.

    Returns:
        The result of every run, those of other processes too.
    """
    provenance = provenance | {"started": now(), "processes": group()[1]}
    if runs[0].config.base and runs[0].initializer.trains:
        _together([runs[0].frozen_base()], provenance, show, result)
    distinct = {run.run_id: run for run in runs}
    results = dict(zip(distinct, _together(list(distinct.values()), provenance, show, result), strict=True))
    return [results[run.run_id] for run in runs]


def _together(
    runs: list[PreparedRun], provenance: dict[str, Any], show: bool, result: Callable[[PreparedRun], Result]
) -> list[Result]:
    part = mine(runs)
    with ExitStack() as claims:
        missing = [run for run in sorted(part, key=lambda run: run.run_id) if claims.enter_context(run.claim()) is None]
        if any_of(bool(missing)):
            _execute(missing, runs[0], provenance, show)
        return merged([result(run) for run in part], len(runs))


def _execute(missing: list[PreparedRun], first: PreparedRun, provenance: dict[str, Any], show: bool) -> None:
    """Train and score this process's runs, or only hold a share of the base.

    What goes wrong is recorded, and ends the command: the others wait for passes that this process cannot run.
    """
    config, labels = first.config, class_names(first.task)
    placement = resolve_placement(config.dtype, config.device)
    try:
        loaded = load_whole(config, labels, placement)
        check_task_fits(config, first.task, loaded)
        if missing:
            run_loaded(missing, loaded, placement, provenance | placement.facts(), show)
        else:
            with spread(config, loaded, [], placement):
                pass
    except Exception as error:
        for run in missing:
            if not run.has_finished():
                run.fail(one_line(error), provenance)
        raise
