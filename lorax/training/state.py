"""RunState: how far a run has come: its data order, random state, curve and end."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorax.adapters.face import Step
from lorax.forward.batch import order
from lorax.training.checkpoint import load_checkpoints
from lorax.training.run import Outcome, Run, TrainPlan

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.models.modality import Row


class RunState:
    """One run under way. `lorax.training.update.Update` changes its parameters.

    Args:
        run: what is trained.
        plan: how it is trained.
        device: where the model is.
    """

    def __init__(self, run: Run, plan: TrainPlan, device: torch.device):
        self.run, self.plan, self.device = run, plan, device
        self.head = list(run.head.parameters()) if run.head is not None else []
        for value in self.head:
            value.requires_grad_(True)  # installing adapters froze everything that was there
        in_head = {id(value) for value in self.head}
        named = run.adapters.named_parameters()
        self.parameters = {name: value for name, value in named.items() if id(value) not in in_head}
        self.named = self.parameters | {f"(head) {index}": value for index, value in enumerate(self.head)}
        """Everything that trains, by the name that its moments have in a checkpoint."""
        self.moments: dict[str, dict[str, Any]] = {}
        """{name: exp_avg, exp_avg_sq, step} of AdamW, as they were when they were last collected."""
        self.generator = torch.Generator().manual_seed(run.seed)
        run.adapters.generator = self.generator
        self.rule_generator = torch.Generator().manual_seed(run.seed)
        self.drops = bool(run.adapters.dropout)
        self.order = order(run.seed, len(run.data), plan.batch_size, plan.steps)
        self.loss_scale = _loss_scale(run.adapters.model)
        self.loss_weight = 1.0
        """Of this run's loss in the sum that is differentiated; in a task group of T runs 1 / T, or its own weight."""
        self._batch_penalties: list[Tensor] = []
        self.step, self.resumed, self.seconds = 0, 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.times: list[float] = []
        self.noted: dict[str, float] = {}
        """What else belongs into the curve's row of the present step."""
        self.error: str | None = None
        self.restored: dict[str, Any] | None = None
        """The state in the run's checkpoint, if there is one to go on from; `restore` finds it."""

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.parameters or self.head)

    @property
    def going(self) -> bool:
        """Whether there is a step left to take."""
        return self.trains and self.error is None and self.step < self.plan.steps

    @property
    def sorts(self) -> bool:
        """Whether the rows of a step are put in order of length, so that those of a part are alike.

        Not where a bound on tokens decides the parts and something is dropped: a row's masks come with its place in the
        batch, which is then the same however the batch is split.
        """
        return self.plan.accumulation > 1 or (self.plan.max_tokens is not None and not self.drops)

    def micro_batches(self, step: int | None = None) -> list[list[Row]]:
        """Return a step's examples in `accumulation` parts of equal size, alike in length within each.

        Args:
            step: None: the present one; of a run that has ended, its last.
        """
        at = min(self.step, len(self.order) - 1) if step is None else step
        rows = [self.run.data[index] for index in self.order[at]]
        if self.sorts:
            rows = sorted(rows, key=len)
        size = len(rows) // self.plan.accumulation
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def before_forward(self) -> None:
        """Let the training rule act before the step's forward passes."""
        if self.run.rule is not None:
            self.run.rule.before_forward(self._this_step(), self.run.adapters)

    @property
    def penalises_batches(self) -> bool:
        """Whether the training rule's penalty depends on what the forward pass computes."""
        return self.run.rule is not None and self.run.rule.of_batch

    def batch_penalty(self) -> Tensor | None:
        """Return what the training rule adds to the loss of the micro-batch that has just gone forward."""
        if self.run.rule is None or (penalty := self.run.rule.penalty(self.run.adapters)) is None:
            return None
        part = penalty / self.plan.accumulation
        self._batch_penalties.append(part.detach())
        return part

    def penalty(self) -> Tensor | None:
        """Return what the training rule adds to the step's loss; detached where it was added batch by batch."""
        if self.run.rule is None:
            return None
        if not self.run.rule.of_batch:
            return self.run.rule.penalty(self.run.adapters)
        parts, self._batch_penalties = self._batch_penalties, []
        return torch.stack(parts).sum() if parts else None

    def after_backward(self) -> None:
        """Let the training rule act on complete gradients."""
        if self.run.rule is not None:
            self.run.rule.after_backward(self._this_step(), self.run.adapters)

    def after_update(self) -> None:
        """Let the training rule act on updated parameters; their clipped gradients are still there."""
        if self.run.rule is not None:
            with torch.no_grad():
                self.run.rule.after_update(self._this_step(), self.run.adapters)

    def finish(self) -> None:
        """Let the training rule leave the adapters as they are to be used."""
        if self.run.rule is not None:
            with torch.no_grad():
                self.run.rule.finish(self.run.adapters)

    def _this_step(self) -> Step:
        return Step(self.step, self.plan.steps, self.rule_generator)

    def add_row(self, row: dict[str, float]) -> None:
        """Add a finished step to the curve and count it."""
        row = row | self.noted
        self.curve.append(row)
        self.step += 1
        if self.run.on_step is not None:
            self.run.on_step(row)

    def add_time(self, seconds: float) -> None:
        """Add the time of a step."""
        self.seconds += seconds
        self.times.append(seconds)

    @property
    def due(self) -> bool:
        """Whether a checkpoint of the run is to be written now."""
        every = self.plan.checkpoint_every
        return every > 0 and self.error is None and (self.step % every == 0 or self.step == self.plan.steps)

    def checkpoint(self) -> tuple[Path, str, dict[str, Any]] | None:
        """Return what is to be written of a run, of one that has ended too; None where it keeps no checkpoint.

        Returns:
            The file, the run's fingerprint, the state.
        """
        if self.run.checkpoint is None or not self.trains:
            return None
        return self.run.checkpoint, self.fingerprint(), self._state()

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        if self.run.on_step is not None:
            for row in state["curve"]:
                self.run.on_step(row)
        self.run.adapters.load_state_dict(state["adapters"])
        if self.run.rule is not None:
            self.run.rule.load_state_dict(_moved(state["rule"], self.device))
            self.rule_generator.set_state(state["rule_generator"])
        if self.run.head is not None:
            self.run.head.load_state_dict(state["head"])
        self.moments = state.get("moments", {})
        self.generator.set_state(state["generator"])
        self.curve, self.seconds = state["curve"], state["seconds"]
        self.step = self.resumed = state["step"]
        self.error = state.get("error")

    def outcome(self) -> Outcome:
        """Say how the run ended."""
        times = self.times[1:] or self.times
        return Outcome(
            status="diverged" if self.error else "finished",
            error=self.error,
            curve=self.curve,
            seconds=self.seconds,
            step_ms=1e3 * statistics.median(times) if times else None,
            resumed=self.resumed,
            rule_report={} if self.run.rule is None else self.run.rule.report(),
        )

    def fingerprint(self) -> str:
        """Return a text that tells the run's checkpoints from those of others."""
        run, plan = self.run, asdict(self.plan)
        del plan["checkpoint_every"], plan["progress"], plan["compile"], plan["checkpointing"]
        if plan["max_tokens"] is None:
            del plan["max_tokens"]  # checkpoints from before there was such a bound
        counts = [value.numel() for value in [*self.parameters.values(), *self.head]]
        numbers = [run.name, run.lr, run.head_lr, run.weight_decay, run.seed, len(run.data), counts]
        numbers += [dict(run.rates)] if run.rates else []
        numbers += [run.task_group] if run.task_group else []
        numbers += [run.weight] if run.weight is not None else []
        numbers += ["masks from counters"] if self.drops else []
        numbers += [type(run.rule).__qualname__] if run.rule is not None else []
        numbers += [["reinforce", asdict(run.objective.settings)]] if run.objective is not None else []
        return json.dumps([numbers, plan], sort_keys=True)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "error": self.error,
            "seconds": self.seconds,
            "curve": self.curve,
            "generator": self.generator.get_state(),
            "moments": _apart(self.moments),
            "adapters": _apart(self.run.adapters.state_dict()),
            "rule": {} if self.run.rule is None else self.run.rule.state_dict(),
            "rule_generator": self.rule_generator.get_state(),
            "head": self.run.head.state_dict() if self.run.head is not None else {},
        }


def restore(states: Sequence[RunState]) -> None:
    """Find the checkpoints from which the runs of a pack go on, all from one moment."""
    files = [(state.run.checkpoint if state.trains else None, state.fingerprint()) for state in states]
    for state, saved in zip(states, load_checkpoints(files), strict=True):
        state.restored = saved


def _moved(state: Any, device: torch.device) -> Any:
    """Return nested mappings and lists with their tensors on a device; checkpoints are read into main memory."""
    if isinstance(state, torch.Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _moved(value, device) for key, value in state.items()}
    return [_moved(value, device) for value in state] if isinstance(state, list) else state


def _apart(state: Any) -> Any:
    """Return nested mappings with tensors of their own: a view would be written with all that lies beside it."""
    if isinstance(state, torch.Tensor):
        whole = state.numel() == state.untyped_storage().nbytes() // state.element_size() and state.is_contiguous()
        return state if whole else state.clone(memory_format=torch.contiguous_format)
    return {key: _apart(value) for key, value in state.items()} if isinstance(state, dict) else state


def _loss_scale(model: nn.Module) -> float:
    """A power of two that keeps small gradients from vanishing in fp16; `Update.unscale` divides by it, exactly."""
    return 1024.0 if next(model.parameters()).dtype == torch.float16 else 1.0
