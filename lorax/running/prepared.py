"""One run from its configuration on: what is known before it starts, and what has been measured so far.

Torch-free; `lorax.running.execute` fills in what needs torch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lorax.config import RunConfig
from lorax.errors import UserError
from lorax.records import RunRecord, Store, run_id
from lorax.running.identity import identity, source, versions
from lorax.running.preflight import load_task
from lorax.tasks import Task

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.adapters.selection.coverage import Coverage
    from lorax.initializers.base import Initializer


@dataclass
class PreparedRun:
    """A run whose task is loaded and whose id is known."""

    config: RunConfig
    """Resolved, with lr, steps, batch_size and head_lr filled in."""
    task: Task
    initializer: Initializer
    identity: dict[str, Any]
    """What the run consumes; `run_id` is its digest."""
    run_id: str
    store: Store
    rate: dict[str, Any]
    """lr, and where it came from: base_lr, lr_prior and lr_factor, or given."""
    overrides: list[str] | None = None
    """The job's words on the command line, where the launcher names them."""

    record: RunRecord = field(init=False)
    """From `begin` on: filled in as the run goes on."""
    factors: dict[str, Factors] = field(default_factory=dict)
    """{layer: factors at step 0}; empty for methods without factors."""
    coverage: Coverage | None = None
    """Which share of the model is adapted, and what is left out; None for methods without factors."""
    items: list[dict[str, Any]] = field(default_factory=list)
    """The answer to every scored example, with its score."""

    @property
    def description(self) -> str:
        """A short name for messages: method, rank, task, seed."""
        config = self.config
        return f"{config.init['name']} rank={config.rank} task={config.task['name']} seed={config.seed}"

    def frozen_base(self) -> PreparedRun:
        """Return the run of the frozen base that this run is compared with."""
        return prepare(replace(self.config, init={"name": "none"}, share="none", label=None, base=False, save=None))

    def begin(self, provenance: dict[str, Any]) -> None:
        """Open the run's record, as that of a run that will finish."""
        self.record = self.new_record("finished", None, provenance)

    def fail(self, error: str, provenance: dict[str, Any]) -> None:
        """Write the record of a run that has failed, with the message."""
        self.store.write(self.new_record("failed", error, provenance))

    def claim(self, wait: bool = True) -> AbstractContextManager[RunRecord | None]:
        """Keep other processes from this run; gives the record of a run that finished before, or None.

        Without `wait` a run that another process has raises `Claimed`.
        """
        return self.store.claim(self.config.name, self.run_id, -1 if wait else 0)

    def stored(self) -> RunRecord | None:
        """Return the record in the store, whatever its status."""
        return self.store.get(self.config.name, self.run_id)

    def has_finished(self) -> bool:
        """Return whether the store holds a record of this run that has not failed."""
        return self.store.finished(self.config.name, self.run_id) is not None

    def new_record(self, status: str, error: str | None, provenance: dict[str, Any]) -> RunRecord:
        """Return a record with everything that is known before the run."""
        config, task = self.config, self.task
        sizes = {f"n_{split}": len(getattr(task, split)) for split in ("train", "validation", "test")}
        return RunRecord(
            run_id=self.run_id,
            name=config.name,
            status=status,
            error=error,
            label=config.label or "",
            init_report=dict(self.rate),
            config=config.to_dict(),
            identity=self.identity,
            task={
                "name": task.name, "kind": task.kind, "metric": task.metric, "direction": task.direction,
                "majority": task.majority, "digest": task.digest, "version": task.version, **sizes,
                **{key: task.notes[key] for key in ("chance", "data") if key in task.notes},
                **({} if task.floor_is == Task.floor_is else {"floor_is": task.floor_is}),
                **({} if task.corpus is None else {"corpus": task.corpus}),
                **task.notes.get("hub", {}),
                **({"parts": [_facts(part) for part in task.parts]} if task.parts else {}),
            },
            model={"name": config.model["name"], "digest": self.identity["model"]["digest"]},
            provenance={
                **source(), "versions": versions(), **provenance, "tag": config.tag,
                **({} if self.overrides is None else {"overrides": self.overrides}),
                **({} if (chain := self.store.chain_head(config.name)) is None else {"chain": chain}),
                "finished": now(),
            },
        )  # fmt: skip


def _facts(task: Task) -> dict[str, Any]:
    """Return what the record of a run over several tasks says of one of them."""
    sizes = {f"n_{split}": len(getattr(task, split)) for split in ("train", "validation", "test")}
    known = {"name": task.name, "metric": task.metric, "majority": task.majority, "digest": task.digest}
    return {**known, "version": task.version, **sizes, **task.notes.get("hub", {})}


def prepare(config: RunConfig) -> PreparedRun:
    """Load the task, fill in its defaults and the learning rate, and name the run.

    Raises:
        UserError: the task's batch size cannot be cut into the asked micro-batches.
    """
    from lorax.models.registry import digest
    from lorax.running.device import resolve_dtype

    task, initializer = load_task(config), config.initializer()
    prior, factor = default_rate(config, initializer)
    rate = {
        "lr": config.lr or task.lr * prior * factor,
        "base_lr": task.lr, "lr_prior": prior, "lr_factor": factor, "lr_given": config.lr is not None,
    }  # fmt: skip
    batch_size, accumulation = config.batch_size or task.batch_size, config.train["accumulation"]
    if batch_size % accumulation:
        raise UserError(f"batch_size={batch_size}: not a multiple of train.accumulation={accumulation}")
    config = replace(
        config,
        steps=config.steps or task.steps,
        batch_size=batch_size,
        lr=rate["lr"],
        train=config.train | {"head_lr": config.train["head_lr"] or task.head_lr},
    )
    dtype = resolve_dtype(config.dtype, config.device)
    consumed = identity(config, initializer, task, digest(config.model), dtype)
    return PreparedRun(config, task, initializer, consumed, run_id(consumed), Store(config.results_dir), rate)


def default_rate(config: RunConfig, initializer: Initializer) -> tuple[float, float]:
    """Return the method's prior, and the factor by which its scale moves the default rate."""
    return float(config.init.get("lr_prior") or 1.0), float(initializer.lr_factor)


def now() -> str:
    """Return the time in UTC, to the second, as records hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
