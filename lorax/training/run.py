"""A lane: one run's adapters, data and optimisation, and how far it has come."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorax.forward.batch import Encoded, order
from lorax.training.checkpoint import load_checkpoint
from lorax.training.schedule import factor

if TYPE_CHECKING:
    from lorax.adapters.install import Adapters
    from lorax.forward.heads import Head


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """How a lane is trained."""

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Examples behind one optimiser step."""
    schedule: str = "cosine"
    """cosine | linear | constant, after the warm-up."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    clip: float | None = 1.0
    """Bound on the lane's gradient norm; None: none."""
    accumulation: int = 1
    """Micro-batches a step: the batch is split, not enlarged, and the result is the same."""
    autocast: str | None = None
    """dtype of the forward pass by autocast (`bfloat16`), or None."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: none."""
    share_prefix: bool = True
    """Compute what a batch's prompts begin with once a lane, where that pays (exact; off under dropout)."""
    skip_padding: bool = True
    """Leave padded tokens out of the frozen products where there are many (exact: nothing reads them)."""
    progress: bool | None = None
    """Show a progress bar; None: if standard error is a terminal."""


@dataclass(kw_only=True)
class Lane:
    """One run: adapters, data and optimisation."""

    adapters: Adapters
    data: Sequence[Encoded]
    lr: float
    seed: int = 0
    """Moves the data order and dropout, alike for all methods."""
    weight_decay: float = 0.0
    head: Head | None = None
    """The lane's fresh classification head, if the model has one."""
    head_lr: float | None = None
    """Learning rate of the head; None: `lr`."""
    plan: TrainPlan | None = None
    """The lane's own plan; None: the one given to `train`. Batch shape and autocast are shared."""
    on_step: Callable[[dict[str, float]], None] | None = None
    """Called with step, loss, lr and grad_norm after each step; a resumed run repeats its earlier rows."""
    checkpoint: Path | None = None
    """The lane's checkpoint file."""
    name: str = ""
    """What the checkpoint belongs to (a run id)."""


@dataclass
class Outcome:
    """How a lane ended."""

    status: str
    """finished | diverged."""
    error: str | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    """step, loss, lr and grad_norm of each step."""
    seconds: float = 0.0
    """Time in steps while the lane was active, earlier attempts included."""
    step_ms: float | None = None
    """Median time of a step of the whole pack; the first is left out (allocations, caches)."""
    resumed: int = 0
    """The step that this attempt went on from."""


class LaneRun:
    """A lane on its way: optimiser, order, random state, curve."""

    def __init__(self, lane: Lane, plan: TrainPlan, device: torch.device):
        self.lane, self.plan, self.device = lane, plan, device
        self.head = list(lane.head.parameters()) if lane.head is not None else []
        for value in self.head:
            value.requires_grad_(True)  # installing adapters froze everything that was there
        own = {id(value) for value in self.head}
        self.parameters = [value for value in lane.adapters.parameters() if id(value) not in own]
        self.generator = torch.Generator().manual_seed(lane.seed)
        lane.adapters.generator = self.generator
        self.drops = bool(getattr(lane.adapters, "dropout", 0.0))
        self.order = order(lane.seed, len(lane.data), plan.batch_size, plan.steps)
        self.loss_scale = _loss_scale(lane.adapters.model)
        self.optimizer = self._optimizer()
        self.step, self.resumed, self.seconds = 0, 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.times: list[float] = []
        self.error: str | None = None
        self._kept_error = False
        self._resume()

    @property
    def going(self) -> bool:
        """Whether there is a step left to take."""
        trains = bool(self.parameters or self.head)
        return trains and self.error is None and self.step < self.plan.steps

    def micro_batches(self) -> list[list[Encoded]]:
        """The step's examples in `accumulation` parts of equal size, alike in length within each."""
        rows = [self.lane.data[index] for index in self.order[self.step]]
        if self.plan.accumulation > 1:
            rows = sorted(rows, key=len)
        size = len(rows) // self.plan.accumulation
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def gradient_norm(self) -> Tensor:
        """The norm of the lane's whole gradient, on the device."""
        gradients = [value.grad for value in self.parameters + self.head if value.grad is not None]
        if self.loss_scale != 1:
            torch._foreach_mul_(gradients, 1 / self.loss_scale)
        if not gradients:
            return torch.zeros((), device=self.device)
        return nn.utils.get_total_norm(gradients)

    def step_with(self, loss: float, norm: float) -> None:
        """Clip and update, or retire the lane."""
        rate = self.lane.lr * factor(self.step, self.plan.steps, self.plan.schedule, self.plan.warmup)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.error = f"step {self.step}: loss {loss:g}, gradient norm {norm:g}"
        else:
            if self.plan.clip is not None and norm > self.plan.clip:
                bound = torch.tensor(norm, device=self.device)
                nn.utils.clip_grads_with_norm_(self.parameters + self.head, self.plan.clip, bound)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["share"]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        row = {"step": self.step, "loss": loss, "lr": rate, "grad_norm": norm}
        self.curve.append(row)
        self.step += 1
        if self.lane.on_step is not None:
            self.lane.on_step(row)

    def after(self, elapsed: float) -> None:
        """Book the step's time."""
        self.seconds += elapsed
        self.times.append(elapsed)

    @property
    def due(self) -> bool:
        """Whether the lane's state is to be kept now."""
        every = self.plan.checkpoint_every
        return every > 0 and self.error is None and (self.step % every == 0 or self.step == self.plan.steps)

    def checkpoint(self) -> tuple[Path, str, dict[str, Any]] | None:
        """Return what is to be written of a lane that goes on, or has been retired since the last time."""
        if self.lane.checkpoint is None or not (self.due or (self.error and not self._kept_error)):
            return None
        self._kept_error = self.error is not None
        return self.lane.checkpoint, self._fingerprint(), self._state()

    def outcome(self) -> Outcome:
        """Say how the lane ended."""
        times = self.times[1:] or self.times
        return Outcome(
            status="diverged" if self.error else "finished",
            error=self.error,
            curve=self.curve,
            seconds=self.seconds,
            step_ms=1e3 * statistics.median(times) if times else None,
            resumed=self.resumed,
        )

    def _optimizer(self) -> torch.optim.Optimizer | None:
        lane = self.lane
        share = (lane.head_lr / lane.lr) if lane.head_lr is not None and lane.lr else 1.0
        groups = [{"params": self.parameters, "share": 1.0}, {"params": self.head, "share": share}]
        groups = [group for group in groups if group["params"]]
        if not groups:
            return None
        fused = self.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(groups, lr=lane.lr, weight_decay=lane.weight_decay, fused=fused)

    def _fingerprint(self) -> str:
        lane, plan = self.lane, asdict(self.plan)
        del plan["checkpoint_every"], plan["progress"]
        counts = [value.numel() for value in self.parameters + self.head]
        numbers = [lane.name, lane.lr, lane.head_lr, lane.weight_decay, lane.seed, len(lane.data), counts]
        return json.dumps([numbers, plan], sort_keys=True)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "error": self.error,
            "seconds": self.seconds,
            "curve": self.curve,
            "generator": self.generator.get_state(),
            "optimizer": self.optimizer.state_dict(),
            "adapters": self.lane.adapters.state_dict(),
            "head": self.lane.head.state_dict() if self.lane.head is not None else {},
        }

    def _resume(self) -> None:
        if self.lane.checkpoint is None or self.optimizer is None:
            return
        state = load_checkpoint(self.lane.checkpoint, self._fingerprint())
        if state is None:
            return
        if self.lane.on_step is not None:
            for row in state["curve"]:
                self.lane.on_step(row)
        self.lane.adapters.load_state_dict(state["adapters"])
        if self.lane.head is not None:
            self.lane.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.curve, self.seconds = state["curve"], state["seconds"]
        self.step = self.resumed = state["step"]
        self.error = state.get("error")
        self._kept_error = self.error is not None


def _loss_scale(model: nn.Module) -> float:
    """A power of two that keeps small gradients from vanishing in fp16; taken out again exactly."""
    return 1024.0 if next(model.parameters()).dtype == torch.float16 else 1.0
