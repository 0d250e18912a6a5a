"""PackUpdate: the updates of all runs of a pack. Lanes that are alike lie in one buffer and are updated as one.

A step is `start`, the passes inside `held`, `complete`, `norms`, `apply` (all on the device, without a wait and
without a branch on a value) and, once the host has read the numbers, `record`; `clear` when nobody needs the gradients
any more. See `lorax.training.ending`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorax.adapters.stacking.buffer import LaneBuffer
from lorax.adapters.stacking.stacks import Stacks
from lorax.forward.active import pack_of
from lorax.training.adamw import LaneAdamW, optimizer_of
from lorax.training.state import RunState
from lorax.training.update import Update, make_updates


class PackUpdate:
    """What changes the parameters of a pack.

    Args:
        states: its runs.
    """

    def __init__(self, states: Sequence[RunState]):
        self.updates = make_updates(states)
        self.stacks = Stacks([])
        self.optimizers: list[LaneAdamW] = []
        """Of each buffer."""
        self.moving: list[Update] = []
        """Those with a step left to take: first the lanes of each buffer in their order, then the others."""
        self._taken = 0
        self._keeps = False
        self._ended: tuple[list[bool], Tensor] | None = None
        """Which runs in the batch have no step left to take, on the host and on the device; None: none."""

    def keep_lanes(self) -> None:
        """Leave runs that have ended in the batch until the last has: they are computed, and changed no more."""
        self._keeps = True

    def apart(self) -> list[nn.Parameter]:
        """Return the parameters that lie in no buffer."""
        return [each.parameter for update in self.moving for each in update.own]

    @property
    def lanes(self) -> list[RunState]:
        """The runs in the batch, in the order of their row blocks: those with a step left to take; see `keep_lanes`."""
        return [state for update in self.moving for state in update.states]

    def advance(self) -> bool:
        """Find who has a step left to take, and hold the lanes that are alike in buffers; return whether anyone has."""
        moving = [update for update in self.updates if update.going]
        if self._keeps and self.moving:
            return bool(moving)
        if {id(update) for update in moving} != {id(update) for update in self.moving}:
            self._form(moving)
        return bool(moving)

    def start(self) -> None:
        """Begin a step, after the training rules have written to the values."""
        self.stacks.start()
        for optimizer, updates in zip(self.optimizers, self._by_buffer(), strict=True):
            optimizer.prepare([update.first.step for update in updates], self._taken)
        self._taken += 1
        if self._keeps:
            self._mark_ended()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the layers compute from the buffers."""
        pack = pack_of([state.run.adapters for state in self.lanes])
        if pack is None or not self.stacks.buffers:
            yield
            return
        with pack.held(self.stacks):
            yield

    @property
    def something_between(self) -> bool:
        """Whether a training rule or a hook comes between the backward passes and the update, or after it."""
        ruled = any(state.run.rule is not None for update in self.moving for state in update.states)
        return ruled or any(buffer.hooked for buffer in self.stacks.buffers)

    def give_up_unreached(self) -> bool:
        """Where the losses' backward passes left layers of a buffer out, complete the gradients without those layers.

        Returns:
            Whether it was so.
        """
        unreached = self.stacks.unreached()
        if unreached:
            self._give_up(unreached)
        return bool(unreached)

    def complete(self) -> None:
        """Make the gradients those of the parameters, when the losses' backward passes are over."""
        self.stacks.complete()

    def clear(self) -> None:
        """Let the gradients in buffers be 0."""
        for buffer in self.stacks.buffers:
            buffer.clear()

    def unscale(self) -> None:
        """Take fp16's loss scale out of the gradients."""
        for update in self.moving:
            update.unscale()
        for optimizer, updates in zip(self.optimizers, self._by_buffer(), strict=True):
            if updates[0].first.loss_scale != 1:
                optimizer.gradients.mul_(1 / updates[0].first.loss_scale)

    def norms(self) -> Tensor:
        """Return the gradient norm of each update that is moving, (len(moving),), on the device."""
        device = self.lanes[0].device
        own = [update.gradient_norm() for update in self.moving]
        parts = [optimizer.norms() for optimizer in self.optimizers]
        held = sum(len(part) for part in parts)
        rest = [torch.zeros((), device=device) if norm is None else norm for norm in own[held:]]
        whole = torch.cat([part.to(device) for part in parts]) if len(parts) > 1 else parts[0] if parts else None
        if whole is not None and any(norm is not None for norm in own[:held]):
            beside = torch.stack([whole.new_zeros(()) if norm is None else norm.to(whole) for norm in own[:held]])
            whole = torch.hypot(whole, beside)
        if not rest:
            return whole if whole is not None else torch.zeros(0, device=device)
        stacked = torch.stack(rest)
        return stacked if whole is None else torch.cat([whole, stacked.to(whole)])

    def apply(self, losses: Tensor, norms: Tensor, penalties: Tensor | None) -> None:
        """Update the lanes of the buffers, but those with a number that is not finite.

        Args:
            losses: of the runs in the batch.
            norms: from `norms`.
            penalties: of the runs in the batch, 0 where one has none; None: none has.
        """
        at = 0
        for optimizer in self.optimizers:
            lanes = slice(at, at + len(optimizer.plans))
            at = lanes.stop
            total = losses[lanes] + norms[lanes]
            if penalties is not None:
                total = total + penalties[lanes]
            ended = total - total != 0  # not finite
            if self._ended is not None:
                ended |= self._ended[1][lanes]
            optimizer.step(norms[lanes].to(optimizer.values), ended.to(optimizer.values.device))

    def _mark_ended(self) -> None:
        """Note which runs in the batch have no step left to take, in a place that stays where it is."""
        ended = [not state.going for state in self.lanes]
        if self._ended is None:
            self._ended = (ended, torch.tensor(ended, device=self.lanes[0].device))
        elif self._ended[0] != ended:
            self._ended[1].copy_(torch.tensor(ended))
            self._ended = (ended, self._ended[1])

    def record(self, losses: Sequence[float], norms: Sequence[float], penalties: Sequence[float | None]) -> None:
        """Take note of a step: end runs whose numbers are not finite, update what lies in no buffer."""
        at = 0
        for update, norm in zip(self.moving, norms, strict=True):
            runs = slice(at, at + len(update.states))
            at = runs.stop
            if update.going:
                update.apply(losses[runs], norm, penalties[runs])

    def collect(self) -> None:
        """Let the runs hold their moments, by name."""
        for update in self.moving:
            update.collect()
        for buffer, optimizer, updates in self._held():
            for k, update in enumerate(updates):
                state = update.first
                for name, slot in buffer.named(k).items():
                    averages = (slot.view(optimizer.exp_avg[k]), slot.view(optimizer.exp_avg_sq[k]))
                    state.moments[name] = dict(zip(("exp_avg", "exp_avg_sq"), averages, strict=True))
                    state.moments[name]["step"] = float(state.step)

    def release(self) -> None:
        """Give all parameters memory of their own again, bit for bit."""
        self.stacks.release()
        self.optimizers, self.moving = [], []

    def _by_buffer(self) -> list[list[Update]]:
        found, at = [], 0
        for optimizer in self.optimizers:
            found.append(self.moving[at : at + len(optimizer.plans)])
            at += len(optimizer.plans)
        return found

    def _held(self) -> list[tuple[LaneBuffer, LaneAdamW, list[Update]]]:
        return list(zip(self.stacks.buffers, self.optimizers, self._by_buffer(), strict=True))

    def _form(self, moving: list[Update], without: Sequence[str] = ()) -> None:
        """Put those that move from now on into buffers; the moments go along."""
        self.collect()
        self.release()
        single = [update for update in moving if len(update.states) == 1]
        lagging = {layer for update in single for layer in _lagging(update.first)}
        self.stacks = Stacks([update.first.run.adapters for update in single], {*without, *lagging})
        first = [single[place] for members in self.stacks.members for place in members]
        chosen = {id(update) for update in first}
        self.moving = [*first, *(update for update in moving if id(update) not in chosen)]
        held = frozenset().union(*(buffer.parameter_ids() for buffer in self.stacks.buffers))
        for update in moving:
            update.leave(held)
            update.keeps_gradients = self._keeps
        self._taken, at = 0, 0
        for buffer, members in zip(self.stacks.buffers, self.stacks.members, strict=True):
            self.optimizers.append(optimizer_of(buffer, self.moving[at : at + len(members)]))
            at += len(members)

    def _give_up(self, layers: list[str]) -> None:
        """Leave layers that this step did not reach to AdamW, which leaves alone what has no gradient.

        Such layers took part in none of the step's fused backward passes. What autograd has put into their
        gradients, where plain operations computed them, is theirs; where it put nothing, they have none.
        """
        named = [
            (parameter, layer in layers)
            for buffer in self.stacks.buffers
            for lane in buffer.adapters
            for layer, adapter in lane.items()
            for parameter in adapter.trained().values()
        ]
        plain = {id(p): p.grad.clone() for p, apart in named if apart and p.grad is not None and bool(p.grad.any())}
        self.stacks.complete()
        gradients = {id(p): p.grad.clone() for p, apart in named if not apart and p.grad is not None} | plain
        self._form(list(self.moving), layers)
        self.start()
        for parameter, _ in named:
            if id(parameter) in gradients:
                if parameter.grad is None:
                    parameter.grad = gradients[id(parameter)]
                else:
                    parameter.grad.copy_(gradients[id(parameter)])


def _lagging(state: RunState) -> set[str]:
    """Return the layers with a tensor that was not updated in each of the run's steps: its count is its own."""
    steps = {name: state.moments[name]["step"] if name in state.moments else 0 for name in state.parameters}
    return {name.rpartition(".")[0] for name, step in steps.items() if int(step) != state.step}
