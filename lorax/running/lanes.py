"""The story of a run, top to bottom, for one configuration or for K that share a frozen base.

configuration -> task -> identity -> claim -> model -> factors -> adapters -> training ->
evaluation -> record. A single run is one lane. No step asks which method is running.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorax.config import RunConfig
from lorax.errors import UserError
from lorax.records import RunRecord, Store, Unwritable, run_id
from lorax.running.explain import one_line
from lorax.running.identity import identity, source, versions
from lorax.running.preflight import load_task


@dataclass
class Ready:
    """A configuration whose task is loaded and whose id is known: all that can be said without torch."""

    config: RunConfig
    task: Any
    initializer: Any
    identity: dict[str, Any]
    run_id: str
    store: Store
    rate: dict[str, Any]
    """lr, and where it came from: base_lr and lr_prior, or given."""
    overrides: list[str] | None = None


def ready(config: RunConfig) -> Ready:
    """Load the task, fill in its defaults and the learning rate, and name the run."""
    from lorax.models.registry import digest
    from lorax.running.place import resolve_dtype

    task = load_task(config)
    initializer = config.initializer()
    prior, factor = default_rate(config, initializer)
    given = config.lr is not None
    config = replace(
        config,
        steps=config.steps or task.steps,
        batch_size=config.batch_size or task.batch_size,
        lr=config.lr or task.lr * prior * factor,
        train=config.train | {"head_lr": config.train["head_lr"] or task.head_lr},
    )
    if config.batch_size % config.train["accumulation"]:
        raise UserError(
            f"batch_size={config.batch_size}: not a multiple of train.accumulation={config.train['accumulation']}"
        )
    named = identity(config, initializer, task, digest(config.model), resolve_dtype(config.dtype, config.device))
    rate = {"lr": config.lr, "base_lr": task.lr, "lr_prior": prior, "lr_factor": factor, "lr_given": given}
    return Ready(config, task, initializer, named, run_id(named), Store(config.results_dir), rate)


def default_rate(config: RunConfig, initializer: Any) -> tuple[float, float]:
    """Return the method's prior, and the factor by which its scale moves the default rate."""
    return float(config.init.get("lr_prior") or 1.0), float(getattr(initializer, "lr_factor", 1.0))


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


def describe(lane: Ready) -> str:
    """Return a short name for messages: method, rank, task, seed."""
    config = lane.config
    return f"{config.init['name']} rank={config.rank} task={config.task['name']} seed={config.seed}"


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


def blank(lane: Ready, status: str, error: str | None, provenance: dict[str, Any]) -> RunRecord:
    """Return a record with everything that is known before the run."""
    config, task = lane.config, lane.task
    sizes = {f"n_{split}": len(getattr(task, split)) for split in ("train", "validation", "test")}
    return RunRecord(
        run_id=lane.run_id,
        name=config.name,
        status=status,
        error=error,
        label=config.label or "",
        init_report=lane.rate,
        config=config.to_dict(),
        identity=lane.identity,
        task={
            "name": task.name, "kind": task.kind, "metric": task.metric, "direction": task.direction,
            "majority": task.majority, "digest": task.digest, "version": task.version, **sizes,
        },
        model={"name": config.model["name"], "digest": lane.identity["model"]["digest"]},
        provenance={
            **source(), "versions": versions(), **provenance, "tag": config.tag,
            **({} if lane.overrides is None else {"overrides": lane.overrides}),
            "finished": now(),
        },
    )  # fmt: skip


def now() -> str:
    """Return the time in UTC, to the second, as records hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _summarise(lane: Ready) -> None:
    from lorax.running.summary import show_summary
    from lorax.studies.written import write_table

    record = lane.store.get(lane.config.name, lane.run_id)
    if record is None or record.status == "failed":
        return
    _, paths = write_table(lane.store, lane.config.name)
    show_summary(lane.store, record, [Path(path) for path in paths])


def base_of(lane: Ready) -> Ready:
    """Return the run of the frozen base that this run is compared with."""
    config = replace(lane.config, init={"name": "none"}, label=None, base=False, save=None)
    return ready(config)
