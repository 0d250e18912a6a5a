"""Update: one optimiser step of a run, or of a task group: runs that are trained as one.

g <- g * min(1, clip / ||g||);  AdamW at lr * schedule * rate of the tensor
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
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
            state.loss_weight = 1 / len(self.states) if state.run.weight is None else state.run.weight
        self.trained = self._trained()
        self.keeps_gradients = False
        """Whether gradients stay in their tensors after the update, for the next step to write to."""
        self._resume()
        self.optimizer: torch.optim.Optimizer | None = None
        self.own: list[Trained] = []
        """What no buffer of several lanes holds: `optimizer` updates it."""
        self.leave(frozenset())

    @property
    def going(self) -> bool:
        """Whether there is a step left to take."""
        return self.first.going

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What trains; a tied tensor once."""
        return [each.parameter for each in self.trained]

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, that of tensors whose share is 1."""
        plan = self.first.plan
        return self.first.run.lr * factor(step, plan.steps, plan.schedule, plan.warmup)

    def leave(self, held: frozenset[int]) -> None:
        """Update all parameters but those that are updated elsewhere, from the moments that the runs hold.

        Args:
            held: their ids.
        """
        self.own = [each for each in self.trained if id(each.parameter) not in held]
        self.optimizer = self._optimizer()
        for each in self.own:
            moments = each.state.moments.get(each.name)
            if moments is not None and self.optimizer is not None:
                self.optimizer.state[each.parameter] = _moved(moments, each.parameter)

    def collect(self) -> None:
        """Let the runs hold the moments of the parameters that are updated here."""
        for each in self.own if self.optimizer is not None else []:
            moments = self.optimizer.state.get(each.parameter) if self.optimizer is not None else None
            if moments:
                for state in self.states:
                    for name, parameter in state.named.items():
                        if parameter is each.parameter:
                            state.moments[name] = dict(moments)

    def unscale(self) -> None:
        """Take fp16's loss scale out of the gradients."""
        if self.first.loss_scale != 1 and (gradients := self._gradients()):
            torch._foreach_mul_(gradients, 1 / self.first.loss_scale)

    def gradient_norm(self) -> Tensor | None:
        """Return the norm of the gradient of what is updated here, on the device; a tied tensor counts once."""
        gradients = self._gradients()
        return nn.utils.get_total_norm(gradients) if gradients else None

    def apply(self, losses: Sequence[float], norm: float, penalties: Sequence[float | None]) -> None:
        """Clip and update; or, where a number is not finite, end every run of the task group before its update.

        Args:
            losses: each run's own loss.
            norm: of the gradient, before clipping.
            penalties: each run's penalty, None where it has none.
        """
        plan, step = self.first.plan, self.first.step
        rate = self.rate(step)
        numbers = [*losses, *(value for value in penalties if value is not None), norm]
        if all(math.isfinite(number) for number in numbers):
            if self.optimizer is not None:
                if plan.clip is not None and norm + 1e-6 > plan.clip:
                    wide = self.own[0].parameter.dtype == torch.float64
                    bound = torch.tensor(norm, dtype=torch.float64 if wide else torch.float32, device=self.first.device)
                    nn.utils.clip_grads_with_norm_([each.parameter for each in self.own], plan.clip, bound)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * group["share"]
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
        """Return what is to be written now, run by run: file, fingerprint, state with the moments as collected."""
        made = [state.checkpoint() for state in self.states]
        return [checkpoint for checkpoint in made if checkpoint is not None]

    def _trained(self) -> list[Trained]:
        """Return what trains, in AdamW's order: the adapters' tensors by their rate, then the heads."""
        letters = {_letter(name) for state in self.states for name in state.parameters}
        if unknown := sorted({key for state in self.states for key in state.run.rates} - letters):
            raise UserError(f"rates name {', '.join(unknown)}: choose from {', '.join(sorted(letters))}")
        run = self.first.run
        head_share = (run.head_lr / run.lr) if run.head_lr is not None and run.lr else 1.0
        by_share: dict[float, list[Trained]] = {}
        heads: list[Trained] = []
        seen: set[int] = set()
        for state in self.states:
            for name, value in state.parameters.items():
                if id(value) not in seen:
                    share = state.run.rates.get(_letter(name), 1.0) if state.run.rates else 1.0
                    by_share.setdefault(share, []).append(Trained(state, name, value, share))
                seen.add(id(value))
            fresh = [(name, value) for name, value in state.named.items() if name not in state.parameters]
            heads += [Trained(state, name, value, head_share) for name, value in fresh if id(value) not in seen]
            seen |= {id(value) for value in state.head}
        return [*(each for group in by_share.values() for each in group), *heads]

    def _optimizer(self) -> torch.optim.Optimizer | None:
        if not self.own:
            return None
        run, fused = self.first.run, self.first.device.type in ("cpu", "cuda")
        heads = {id(value) for state in self.states for value in state.head}
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for each in self.own:
            groups.setdefault((id(each.parameter) in heads, each.share), []).append(each.parameter)
        listed = [{"params": parameters, "share": share} for (_, share), parameters in groups.items()]
        return torch.optim.AdamW(listed, lr=run.lr, weight_decay=run.weight_decay, fused=fused)

    def _gradients(self) -> list[Tensor]:
        return [each.parameter.grad for each in self.own if each.parameter.grad is not None]

    def _resume(self) -> None:
        saved = [state.restored for state in self.states if state.restored is not None]
        if len(saved) < len(self.states) or not self.trained:
            return
        if len({checkpoint["step"] for checkpoint in saved}) > 1:
            warnings.warn(
                f"task group {self.first.run.task_group}: checkpoints of different steps: starting over", stacklevel=2
            )
            return
        for state, checkpoint in zip(self.states, saved, strict=True):
            state.resume(checkpoint)
        if "optimizer" in saved[0]:  # an older checkpoint: moments in AdamW's order, not by name
            moments = saved[0]["optimizer"]["state"]
            for index, each in enumerate(self.trained):
                if index in moments:
                    for state in self.states:
                        names = [name for name, value in state.named.items() if value is each.parameter]
                        state.moments |= dict.fromkeys(names, moments[index])


@dataclass(frozen=True)
class Trained:
    """A parameter that trains."""

    state: RunState
    name: str
    parameter: nn.Parameter
    share: float
    """Its learning rate over the run's."""


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


def _moved(moments: dict[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    """Return moments as `torch.optim.AdamW` holds them beside a parameter."""
    like = parameter.detach()
    moved = {name: torch.empty_like(like, memory_format=torch.contiguous_format) for name in ("exp_avg", "exp_avg_sq")}
    for name, place in moved.items():
        place.copy_(moments[name])
    return moved | {"step": torch.tensor(float(moments["step"]), device=like.device)}
