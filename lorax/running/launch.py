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
from lorax.records.claims import Claimed
from lorax.running.launchers.memory import give_back, is_out_of_memory
from lorax.running.launchers.sharing import CLAIMED
from lorax.running.messages import one_line
from lorax.running.prepared import PreparedRun, now, prepare
from lorax.running.sharding.processes import is_sharded

OUR_SWEEPER = "hydra_plugins.lorax.sweeper.LoraxSweeper"


def run_pack(
    configs: Sequence[RunConfig],
    provenance: dict[str, Any] | None = None,
    show: bool = False,
    overrides: Sequence[list[str]] | None = None,
    wait: bool = True,
) -> list[dict[str, Any]]:
    """Run configurations on one frozen base; write each one's record, with the id that it has when it runs alone.

    Its numbers are those of the run alone up to rounding: a product over several lanes may sum in another order.
    In float64 they were equal to the bit wherever it was looked at; in float32 losses lie within 1e-5, under bf16
    autocast test losses within 1e-3. A method that decides by the order of close values (AdaLoRA's pruning) may then
    decide otherwise, and its losses lie further apart.

    Args:
        configs: K runs that agree on model, task, data seed, precision and batch shape.
        provenance: what the launcher adds to the records.
        show: print the summary of a single run and raise on bad input, instead of recording it.
        overrides: each run's words on the command line, for its provenance.
        wait: for a run that another process has; otherwise it is left out, and its status is `CLAIMED`.

    Returns:
        For each run: run_id, status, message, scores.
    """
    runs = [prepare(config) for config in configs]
    for run, words in zip(runs, overrides or [], strict=False):
        run.overrides = words
    distinct = {run.run_id: run for run in runs}  # in the order of `configs`; a run's index is its lane
    if is_sharded(runs[0].config):
        from lorax.running.sharding.spread_pack import run_spread

        results = run_spread(runs, provenance or {}, show, _result)
        if show:
            _summarise(runs[0])
        return results
    stores = {(str(run.store.root), run.config.name): run.store for run in runs}
    for (_, name), store in stores.items():
        store.sweep(name)
    elsewhere: set[str] = set()
    with ExitStack() as claims:
        missing = set()
        with ExitStack() as claiming:
            if not wait and len(distinct) > 1:  # of two processes with this pack, one gets all of it
                for (_, name), store in sorted(stores.items()):
                    claiming.enter_context(store.claiming(name))
            for key in sorted(distinct):  # claimed in one order everywhere: two processes never wait for each other
                try:
                    finished = claims.enter_context(distinct[key].claim(wait)) is not None
                except Claimed:
                    elsewhere.add(key)
                    continue
                if finished:
                    print(f"{key} {distinct[key].description}: finished before, skipped")
                else:
                    missing.add(key)
        if missing:
            _attempt([run for key, run in distinct.items() if key in missing], provenance or {}, show)
    if show:
        _summarise(runs[0])
    return [_claimed(run) if run.run_id in elsewhere else _result(run) for run in runs]


def train_pack(configs: list[RunConfig], overrides: list[list[str]], wait: bool = False) -> list[dict[str, Any]]:
    """Run a pack of the packed launcher, in this process or in a worker.

    Without `wait` the runs that another process has are left to it.
    """
    return run_pack(configs, provenance={"launcher": "PackedLauncher"}, overrides=overrides, wait=wait)


def _claimed(run: PreparedRun) -> dict[str, Any]:
    """Return the result of a run that another process has, with the time of an earlier failure that may be recorded."""
    record = run.stored()
    before = record.provenance.get("finished") if record is not None and record.status == "failed" else None
    message = "another process has this run"
    return {"run_id": run.run_id, "status": CLAIMED, "message": message, "failed_before": before, "scores": {}}


def _result(run: PreparedRun) -> dict[str, Any]:
    record = run.stored()
    status = record.status if record else "failed"
    result = {"run_id": run.run_id, "status": status, "message": record.error if record else "no record"}
    return result | {"scores": record.scores if record else {}}


def _attempt(runs: list[PreparedRun], provenance: dict[str, Any], show: bool) -> None:
    """Do the work; what goes wrong is recorded as failed with its message.

    A pack that does not fit into memory is tried again in two halves; runs that have finished by then are kept.
    """
    provenance = provenance | {"started": now()}
    too_large = ""
    try:
        from lorax.running.execute import execute
        from lorax.running.groups.execute import run_group

        if runs[0].task.parts:
            execute(runs, provenance, show, run_group)
        else:
            execute(runs, provenance, show)
    except Unwritable:
        raise  # a failure could not be recorded either; the rest of a sweep would end the same way
    except Exception as error:
        if show and isinstance(error, UserError):
            raise
        if len(runs) > 1 and is_out_of_memory(error):
            too_large = one_line(error)
        else:
            for run in runs:
                if not run.has_finished():
                    run.fail(one_line(error), provenance)
            if show:
                raise
    if too_large:  # here nothing holds the failed attempt any more
        _in_halves([run for run in runs if not run.has_finished()], provenance, too_large)


def _in_halves(runs: list[PreparedRun], provenance: dict[str, Any], reason: str) -> None:
    """Try runs again that together did not fit into memory."""
    give_back()
    for run in runs:
        run.factors, run.items = {}, []
    half = (len(runs) + 1) // 2
    print(f"{reason[:120]}: {len(runs)} runs go on in packs of {half} and {len(runs) - half}", flush=True)
    for part in (runs[:half], runs[half:]):
        if part:
            _attempt(part, provenance, show=False)


def _summarise(run: PreparedRun) -> None:
    from lorax.reports.write import write_table
    from lorax.running.summary import show_summary

    record = run.stored()
    if record is None or record.status == "failed":
        return
    _, paths = write_table(run.store, run.config.name)
    show_summary(run.store, record, [Path(path) for path in paths])
