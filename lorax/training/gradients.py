"""The forward and backward pass of a step, for every run that is going: K losses, and gradients that add up in `.grad`.

loss_k = sum over the labels of run k's batch of their losses / their number
differentiated: sum_k w_k loss_k
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lorax.adapters.dropout import key
from lorax.forward.active import masks_from, set_token_counts, set_unpadded
from lorax.forward.readout import autocast
from lorax.training.state import RunState

if TYPE_CHECKING:
    from lorax.models.modality import Batch, Modality, Row


@dataclass
class Numbers:
    """What the lanes of a micro-batch need beside the batch: one tensor's views, so one copy to the device."""

    labels: Tensor
    """(K,) labels of each run's whole batch."""
    keys: Tensor | None
    """(K,) what the dropout masks are drawn from; None where nothing is dropped."""
    slots: Tensor | None
    """(N,) where each label's loss stands in a table (K, room), and beyond it for one that only fills the batch's
    shape; None where the losses are the table."""
    room: int
    packed: Tensor
    """The tensor of which the others are views."""

    def means(self, losses: Tensor) -> Tensor:
        """Return each run's part of its loss, (K,): the sum of its labels' losses over the labels of its batch.

        A lane's sum is taken over its own row, so one that is not finite stays alone.

        Args:
            losses: (N,), lane after lane.
        """
        lanes = len(self.labels)
        if self.slots is not None:
            losses = losses.new_zeros(lanes * self.room + 1).index_copy(0, self.slots, losses)[:-1]
        return losses.view(lanes, -1).sum(1) / self.labels


def numbers_of(batch: Batch, labels: Sequence[int], keys: Sequence[int] | None) -> Numbers:
    """Return a micro-batch's numbers on its device.

    Args:
        batch: equally many rows for each lane.
        labels: of each run's whole batch.
        keys: of the dropout masks; None where nothing is dropped.
    """
    lanes, losses = len(labels), len(batch.targets)
    own = np.array(batch.counts).reshape(lanes, -1).sum(1)
    room = int(own.max()) if batch.room is None else batch.room
    parts: list[Any] = [np.array(labels), np.array([] if keys is None else keys, dtype=np.int64)]
    filled = losses == lanes * room and (own == room).all()
    if not filled or batch.room is not None:  # a batch that fills a shape takes the way of all that do
        slots = np.full(losses, lanes * room)
        slots[: own.sum()] = np.repeat(np.arange(lanes) * room - (own.cumsum() - own), own) + np.arange(own.sum())
        parts.append(slots)
    host = torch.from_numpy(np.concatenate(parts))
    if batch.targets.device.type == "cuda":
        host = host.pin_memory()
    packed = host.to(batch.targets.device, non_blocking=True)
    counts, drawn, *table = packed.split([len(part) for part in parts])
    return Numbers(counts, None if keys is None else drawn, table[0] if table else None, room, packed)


class Lanes:
    """The runs that share a batch, and what is the same for all their batches.

    Args:
        modality: of the model.
        states: the runs, in the order of their rows.
    """

    def __init__(self, modality: Modality[Any], states: Sequence[RunState]):
        self.modality, self.states, self.plan = modality, list(states), states[0].plan
        self.adapters = [state.run.adapters for state in states]
        self.device, self.scale = states[0].device, states[0].loss_scale
        self.drops = any(state.drops for state in states)
        self.penalised = [state for state in self.states if state.penalises_batches]
        """Those whose training rule adds to the loss of every micro-batch."""
        self._weights: Tensor | None = None
        """(K,) w_k, times the loss scale: what the losses' backward pass begins with."""

    def micro_batches(self) -> list[list[Row]]:
        """Return the step's micro-batches, in each the rows of all runs, lane after lane."""
        parts = [state.micro_batches() for state in self.states]
        return [[row for block in blocks for row in block] for blocks in zip(*parts, strict=True)]

    def labels(self, micro_batches: list[list[Row]]) -> list[int]:
        """Return how many labels each run's batch has."""
        counts = [0] * len(self.states)
        for rows in micro_batches:
            size = len(rows) // len(counts)
            for at, row in enumerate(rows):
                counts[at // size] += len(row.labels)
        return counts

    def keys(self, part: int) -> list[int] | None:
        """Return what the dropout masks of a micro-batch are drawn from, run by run: seed, step and part decide it."""
        return [key(state.run.seed, state.step, part) for state in self.states] if self.drops else None

    def differentiate(self, batch: Batch, numbers: Numbers) -> Tensor:
        """Add the gradients of a micro-batch to `.grad`; return its part of each run's loss, (K,), detached."""
        with masks_from(self.adapters, numbers.keys):
            with autocast(self.device, self.plan.autocast):
                losses = self.modality.losses(self.modality.forward(batch), batch)
            means = numbers.means(losses)
            if self._weights is None:
                self._weights = means.new_tensor([self.scale * state.loss_weight for state in self.states])
            if self.penalised:
                self._with_penalties(batch, means, self._weights)
            else:
                means.backward(self._weights)
        return means.detach()

    def _with_penalties(self, batch: Batch, means: Tensor, weights: Tensor) -> None:
        """Differentiate the losses and what training rules add to them."""
        set_token_counts(self.adapters, batch)
        added = [(state, penalty) for state in self.penalised if (penalty := state.batch_penalty()) is not None]
        set_token_counts(self.adapters, None)
        each = [penalty.new_tensor(self.scale * state.loss_weight) for state, penalty in added]
        torch.autograd.backward([means, *(penalty for _, penalty in added)], [weights, *each])

    def of(self, states: Sequence[RunState]) -> bool:
        """Whether these are the lanes, in this order."""
        return len(states) == len(self.states) and all(map(operator.is_, states, self.states))


class Eager:
    """The passes of a step as they come, each micro-batch in the shape that it has.

    Args:
        modality: of the model.
    """

    def __init__(self, modality: Modality[Any]):
        self.modality = modality
        self._lanes: Lanes | None = None

    def gradients(self, going: list[RunState]) -> Tensor:
        """Accumulate the gradient of every run that is going; return their losses, (K,)."""
        if self._lanes is None or not self._lanes.of(going):
            self._lanes = Lanes(self.modality, going)
        lanes = self._lanes
        parts = lanes.micro_batches()
        labels = lanes.labels(parts)
        # under dropout each row has its own mask; a penalty on a batch counts its tokens
        share = lanes.plan.share_prefix and not lanes.drops and not lanes.penalised
        total: Tensor | None = None
        for at, rows in enumerate(parts):
            batch = self.modality.collate(rows, len(going), share=share)
            set_unpadded(lanes.adapters, batch if lanes.plan.skip_padding else None)
            means = lanes.differentiate(batch, numbers_of(batch, labels, lanes.keys(at)))
            total = means if total is None else total + means
        assert total is not None
        return total
