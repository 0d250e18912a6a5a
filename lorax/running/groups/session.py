"""A run over a group of tasks on a loaded model: a lane a task, tensors tied, trained as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lorax.adapters.joint.common import CommonAndOwn
from lorax.errors import UserError
from lorax.running.device import Placement
from lorax.running.groups.curve import Curve
from lorax.running.prepared import PreparedRun
from lorax.running.session import Session

if TYPE_CHECKING:
    from lorax.adapters.face import Trainable
    from lorax.adapters.factors import Factors
    from lorax.adapters.install import Adapters
    from lorax.forward.heads import Head
    from lorax.models.registry import Loaded
    from lorax.probing.cache import Cache
    from lorax.training.tracking import Tracker


class GroupSession(Session):
    """The tasks of one run; task t is lane t.

    Args:
        loaded: the untouched model; `close` gives it back untouched.
        placement: device and precision.
        group: the run, with an open record.
        parts: the run on each of its tasks, with factors and an open record each.
        bare: skeletons of the model, with each task's classes.
        common: {layer: factors} of the term that all tasks train as one, under share=common; else empty.
        cache: of decompositions and gradients.
        show: progress bars on standard error.
    """

    def __init__(
        self,
        loaded: Loaded,
        placement: Placement,
        group: PreparedRun,
        parts: list[PreparedRun],
        bare: Sequence[Loaded],
        common: Mapping[str, Factors],
        cache: Cache | None,
        show: bool,
    ):
        self.group, self.bare, self.common = group, bare, common
        super().__init__(loaded, placement, parts, cache, show)
        self.curve = Curve([part.task.name for part in parts], group.task.weights, self.trackers[0].log)
        own = sum(value.numel() for name in loaded.head for value in self._original(name).parameters())
        self.total += sum(head.count_trainable() for head in self.heads) - own

    def _install(self) -> Sequence[Trainable]:
        adapters = super()._install()
        return adapters if self.trains else list(adapters) * len(self.runs)

    def _install_factors(self) -> list[Adapters]:
        from lorax.adapters.install import install
        from lorax.adapters.tying import tie

        plans: list[dict[str, Any]] = [dict(run.factors) for run in self.runs]
        if self.common:
            plans = [
                {name: CommonAndOwn.of(name, self.common[name], plan) for name, plan in own.items()} for own in plans
            ]
        dropouts, infos = [run.config.dropout for run in self.runs], [run.identity for run in self.runs]
        adapters = install(self.loaded.model, plans, self.config.recenter, dropouts, infos)
        try:
            tie(*adapters, tensors=self._tied(adapters[0]))
        except UserError:
            for each in adapters:
                each.detach()
            raise
        return adapters

    def _tied(self, adapters: Trainable) -> list[str]:
        """Return the names of the tensors that the tasks train as one."""
        method, share = self.group.initializer, self.group.config.share
        trained = dict.fromkeys(key for each in adapters.layer_adapters().values() for key in each.trained())
        if method.shared_by_tasks:
            return [key for key in trained if key in method.shared_by_tasks]
        if share == "common":
            return [key for key in trained if key.startswith("common.")]
        found = [key for key in trained if key.removeprefix("d") == share]
        if share != "none" and not found:
            raise UserError(f"share={share}: init={method.name} trains no {share}; it trains {', '.join(trained)}")
        return found

    def _install_heads(self) -> list[Head]:
        from lorax.forward.heads import install_heads

        return install_heads(self.loaded, self._head_seeds(), self.bare)

    def _open_trackers(self) -> list[Tracker]:
        return [self._tracker(self.group)]

    def _on_step(self, lane: int) -> Callable[[dict[str, float]], None]:
        return partial(self.curve.add, lane)

    def _grouped(self, lane: int) -> dict[str, Any]:
        return {"task_group": self.group.run_id, "weight": self.group.task.weights[lane]}

    def costs_together(self) -> dict[str, Any]:
        """Return the costs of the run: a tensor that tasks share counts once, and is saved with each."""
        each = [self.costs(lane) for lane in range(len(self.runs))]
        tied = {id(value): value.numel() for adapters in self.adapters for value in adapters.parameters()}
        head = sum(costs["head"] for costs in each)
        body = sum(tied.values())
        return each[0] | {
            "trainable": body + head, "head": head, "total": self.total, "share": (body + head) / self.total,
            "bytes": sum(costs["bytes"] for costs in each) if self.trains else each[0]["bytes"],
        }  # fmt: skip

    def log_results(self) -> None:
        """Log how the run ended: its scores, and each task's."""
        [tracker], record = self.trackers, self.group.record
        scores: dict[str, Any] = {}
        for split, entry in record.scores.items():
            scores |= {f"{split}/{key}": value for key, value in entry.items() if key != "tasks"}
            for name, own in entry["tasks"].items():
                scores |= {f"{split}/{name}/{key}": value for key, value in own.items()}
        costs = {f"costs/{key}": value for key, value in record.costs.items()}
        step0 = record.init_report.get("step0_error")
        tracker.summary({**scores, **costs, "step0_error": step0, "run_id": record.run_id})
        tracker.finish(record.status)
