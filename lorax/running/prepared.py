"""A configuration made ready: its task loaded, its learning rate and id known, and its record before the run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from lorax.config import RunConfig
from lorax.errors import UserError
from lorax.records import RunRecord, Store, run_id
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
    from lorax.running.device import resolve_dtype

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


def base_of(lane: Ready) -> Ready:
    """Return the run of the frozen base that this run is compared with."""
    config = replace(lane.config, init={"name": "none"}, label=None, base=False, save=None)
    return ready(config)


def describe(lane: Ready) -> str:
    """Return a short name for messages: method, rank, task, seed."""
    config = lane.config
    return f"{config.init['name']} rank={config.rank} task={config.task['name']} seed={config.seed}"


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
