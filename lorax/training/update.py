"""Update: one optimiser step of a run, or of a task group: runs that are trained as one.

g <- g * min(1, clip / ||g||);  AdamW at lr * schedule * rate of the tensor
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorax.errors import UserError
from lorax.training.schedule import factor
from lorax.training.state import RunState

_SHARED = ("lr", "head_lr", "weight_decay", "seed")


class Update:
    """What changes the parameters of one run, or of a task group.

    Args:
        states: the runs of the task group; usually one run.
    """

    def __init__(self, states: Sequence[RunState]):
        self.states = list(states)
        self.first = self.states[0]
        for state in self.states:
            state.loss_weight = 1 / len(self.states)
        self._parameter_groups = self._make_parameter_groups()
        self.parameters: list[nn.Parameter] = [value for group in self._parameter_groups for value in group["params"]]
        self.optimizer = self._optimizer()
        self.keeps_gradients = False
        """Whether gradients stay in their tensors after the update, for the next step to write to."""
        self._resume()

    @property
    def going(self) -> bool:
        """Whether there is a step left to take."""
        return self.first.going

    def unscale(self) -> None:
        """Take fp16's loss scale out of the gradients."""
        if self.first.loss_scale != 1:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], 1 / self.first.loss_scale)

    def gradient_norm(self) -> Tensor:
        """Return the norm of the whole gradient, on the device; a tied tensor counts once."""
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        return nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=self.first.device)

    def apply(self, losses: Sequence[float], norm: float, penalties: Sequence[float | None]) -> None:
        """Clip and update; or, where a number is not finite, end every run of the task group before its update.

        Args:
            losses: each run's own loss.
            norm: of the gradient, before clipping.
            penalties: each run's penalty, None where it has none.
        """
        plan, run, step = self.first.plan, self.first.run, self.first.step
        rate = run.lr * factor(step, plan.steps, plan.schedule, plan.warmup)
        numbers = [*losses, *(value for value in penalties if value is not None), norm]
        if all(math.isfinite(number) for number in numbers):
            if plan.clip is not None and norm > plan.clip:
                bound = torch.tensor(norm, device=self.first.device)
                nn.utils.clip_grads_with_norm_(self.parameters, plan.clip, bound)
            for group in self._optimizer_groups():
                group["lr"] = rate * group["share"]
            if self.optimizer is not None:
                self.optimizer.step()
            for state in self.states:
                state.after_update()
        else:
            for state, loss, penalty in zip(self.states, losses, penalties, strict=True):
                beside = "" if penalty is None else f", penalty {penalty:g}"
                state.error = f"step {step}: loss {loss:g}{beside}, gradient norm {norm:g}"
        if self.optimizer is not None and not self.keeps_gradients:
            self.optimizer.zero_grad(set_to_none=True)
        for state, loss, penalty in zip(self.states, losses, penalties, strict=True):
            row = {"step": step, "loss": loss, "lr": rate, "grad_norm": norm}
            state.add_row(row if penalty is None else row | {"penalty": penalty})

    def checkpoints(self) -> list[tuple[Any, str, dict[str, Any]]]:
        """Return what is to be written now, run by run: file, fingerprint, state with the whole optimiser."""
        optimizer = self.optimizer.state_dict() if self.optimizer is not None else {}
        made = [state.checkpoint(optimizer) for state in self.states]
        return [checkpoint for checkpoint in made if checkpoint is not None]

    def _make_parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's groups: the adapters' tensors by their rate, then the heads."""
        by_rate: dict[float, list[nn.Parameter]] = {}
        heads: list[nn.Parameter] = []
        seen: set[int] = set()
        for state in self.states:
            for name, value in state.parameters.items():
                if id(value) not in seen:
                    rate = state.run.rates.get(_letter(name), 1.0) if state.run.rates else 1.0
                    by_rate.setdefault(rate, []).append(value)
                seen.add(id(value))
            heads += [value for value in state.head if id(value) not in seen]
            seen |= {id(value) for value in state.head}
        letters = {_letter(name) for state in self.states for name in state.parameters}
        if unknown := sorted({key for state in self.states for key in state.run.rates} - letters):
            raise UserError(f"rates name {', '.join(unknown)}: choose from {', '.join(sorted(letters))}")
        run = self.first.run
        share = (run.head_lr / run.lr) if run.head_lr is not None and run.lr else 1.0
        groups = [{"params": values, "share": rate} for rate, values in by_rate.items()]
        return [group for group in [*groups, {"params": heads, "share": share}] if group["params"]]

    def _optimizer(self) -> torch.optim.Optimizer | None:
        if not self._parameter_groups:
            return None
        run, fused = self.first.run, self.first.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(self._parameter_groups, lr=run.lr, weight_decay=run.weight_decay, fused=fused)

    def _optimizer_groups(self) -> list[dict[str, Any]]:
        return [] if self.optimizer is None else self.optimizer.param_groups

    def _resume(self) -> None:
        saved = [state.restored for state in self.states if state.restored is not None]
        if len(saved) < len(self.states) or self.optimizer is None:
            return
        if len({checkpoint["step"] for checkpoint in saved}) > 1:
            warnings.warn(
                f"task group {self.first.run.task_group}: checkpoints of different steps: starting over", stacklevel=2
            )
            return
        for state, checkpoint in zip(self.states, saved, strict=True):
            state.resume(checkpoint)
        self.optimizer.load_state_dict(saved[0]["optimizer"])


def make_updates(states: Sequence[RunState]) -> list[Update]:
    """Return one `Update` for every run, or task group, in the order of their first members.

    Raises:
        UserError: runs of a task group that differ in learning rate, decay, seed or plan.
    """
    groups: dict[Any, list[RunState]] = {}
    for position, state in enumerate(states):
        groups.setdefault(state.run.task_group or position, []).append(state)
    for members in groups.values():
        for key in _SHARED:
            values = [getattr(state.run, key) for state in members]
            if any(value != values[0] for value in values):
                raise UserError(f"task group {members[0].run.task_group}: its runs differ in {key}: {values}")
        if any(state.plan != members[0].plan for state in members):
            raise UserError(f"task group {members[0].run.task_group}: its runs differ in their training plan")
    updates = [Update(members) for members in groups.values()]
    if sum(len(update.parameters) for update in updates) > len({id(p) for u in updates for p in u.parameters}):
        raise UserError("runs that share tied tensors must be trained as one task group: give them one `task_group`")
    return updates


def _letter(name: str) -> str:
    """The letter of a trained tensor: B for "<layer>.B" and, of recentred factors, "<layer>.dB"."""
    return name.rpartition(".")[2].removeprefix("d")
