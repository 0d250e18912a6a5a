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

from lorax.adapters.dropout import from_row, key
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


@dataclass(frozen=True)
class Part:
    """A micro-batch."""

    rows: list[Row]
    """Of all runs, lane after lane."""
    number: int = 0
    """Of the part of the step, among `accumulation`."""
    first: int = 0
    """Place of a run's first row here among its rows in that part, where a bound on tokens has split it."""


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
        self.most_rows: int | None = None
        """Rows of a run in a micro-batch at most; None: as many as `max_tokens` allows, step by step."""
        self._weights: Tensor | None = None
        """(K,) w_k, times the loss scale: what the losses' backward pass begins with."""

    def micro_batches(self, step: int | None = None) -> list[Part]:
        """Return the micro-batches of a step: its `accumulation` parts, split further by `max_tokens`.

        Args:
            step: None: the present one of each run; else the same for all, a run's last where it has fewer.
        """
        parts = [
            state.micro_batches(None if step is None else min(step, len(state.order) - 1)) for state in self.states
        ]
        found = []
        for number, blocks in enumerate(zip(*parts, strict=True)):
            size = self._rows_at_once(blocks)
            for first in range(0, len(blocks[0]), size):
                rows = [row for block in blocks for row in block[first : first + size]]
                found.append(Part(rows, number, first))
        return found

    def _rows_at_once(self, blocks: Sequence[list[Row]]) -> int:
        """Return how many rows of each run, a divisor of all, `max_tokens` allows in a micro-batch; at least one.

        Equal parts, so that few shapes of batch come up.
        """
        count, bound = len(blocks[0]), self.plan.max_tokens
        if bound is None:
            return count
        most = count if self.most_rows is None else self.most_rows
        for size in range(min(most, count), 1, -1):
            starts = range(0, count, size) if count % size == 0 else ()
            pieces = [[row for block in blocks for row in block[start : start + size]] for start in starts]
            if pieces and all(self.modality.padded(piece) <= bound for piece in pieces):
                return size
        return 1

    def labels(self, micro_batches: list[Part]) -> list[int]:
        """Return how many labels each run's batch has."""
        counts = [0] * len(self.states)
        for part in micro_batches:
            size = len(part.rows) // len(counts)
            for at, row in enumerate(part.rows):
                counts[at // size] += len(row.labels)
        return counts

    def keys(self, part: Part) -> list[int] | None:
        """Return what the dropout masks of a micro-batch are drawn from, run by run: seed, step and part decide it.

        A row's masks are the same however `max_tokens` splits the part.
        """
        if not self.drops:
            return None
        return [from_row(key(state.run.seed, state.step, part.number), part.first) for state in self.states]

    def differentiate(self, batch: Batch, numbers: Numbers) -> Tensor:
        """Add the gradients of a micro-batch to `.grad`; return its part of each run's loss, (K,), detached."""
        with masks_from(self.adapters, numbers.keys):
            with autocast(self.device, self.plan.autocast):
                losses = self.modality.label_losses(batch)
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
        for part in parts:
            # A beginning that is cached would be put into the cache again by a block that is computed again.
            once = lanes.plan.checkpointing
            batch = self.modality.collate(part.rows, len(going), share=share, single_pass=once)
            set_unpadded(lanes.adapters, batch if lanes.plan.skip_padding else None)
            means = lanes.differentiate(batch, numbers_of(batch, labels, lanes.keys(part)))
            total = means if total is None else total + means
        assert total is not None
        return total
