"""A static step: batches in few shapes and fixed buffers, so that the forward and backward pass can be recorded.

A shape of batch runs as it is when it comes first, which fills all that layers keep; it is recorded when it comes
again, and replayed from then on. So is what ends the step, clipping and update, in a recording of its own: it serves
all shapes, and training rules find the gradients between the two (`lorax.training.ending`). All runs of the pack stay
in the batch until the last has ended: one that has ended is computed and not used, so nothing is recorded anew.
Gradients add up in tensors that stay where they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorax.forward.active import set_unpadded
from lorax.forward.blocks.compiled import CompiledBase, reason
from lorax.training.gradients import Lanes, Numbers, numbers_of
from lorax.training.recording import Recording
from lorax.training.state import RunState

if TYPE_CHECKING:
    from lorax.adapters.stacking.stacks import Stacks
    from lorax.models.modality import Batch, Modality
    from lorax.training.pack_update import PackUpdate

LOOKED_AT = 1000
"""Steps whose batches decide the shapes, spread over the run."""


@dataclass
class _Shape:
    """The buffers of one shape of batch."""

    batch: Batch
    numbers: Numbers
    losses: Tensor
    """(K,) what the pass writes."""
    reached: list[set[str]]
    """Of each buffer of lanes, the layers that the pass goes through."""
    replay: Callable[[], None] | None = None

    def fill(self, batch: Batch, numbers: Numbers) -> None:
        """Copy a batch of this shape into the buffers."""
        for buffer, value in zip(_tensors(self.batch, self.numbers), _tensors(batch, numbers), strict=True):
            buffer.copy_(value, non_blocking=True)


class StaticStep:
    """Forward and backward pass of all runs of a pack.

    Args:
        modality: of the model.
        updates: of the pack; keeps all runs in the batch from now on.
        recording: records what comes again.
        base: compiles the layers of the model; None: nothing does.
    """

    def __init__(
        self,
        modality: Modality[Any],
        updates: PackUpdate,
        recording: Recording,
        base: CompiledBase | None = None,
    ):
        self.modality, self.updates, self.recording, self.base = modality, updates, recording, base
        updates.keep_lanes()
        self.made: dict[Any, _Shape] = {}
        """The buffers by shape of batch."""
        self._stacks: Stacks | None = None

    def gradients(self, lanes: list[RunState]) -> Tensor:
        """Put the gradients of one step into `.grad`; return the losses of all runs in the batch, (K,).

        Args:
            lanes: those runs, in the order of their rows.
        """
        if self.base is None or not self.base.layers:
            return self._gradients(lanes)
        try:
            return self._gradients(lanes)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the layers are compiled when a shape first comes, in the middle of a step
            self.base.give_up()
            warnings.warn(f"the base could not be compiled ({reason(error)}); it runs as it is", stacklevel=2)
            self.updates.clear()
            self.made.clear()
            return self._gradients(lanes)

    def _gradients(self, lanes: list[RunState]) -> Tensor:
        if self._stacks is not self.updates.stacks:
            self._begin(lanes)
        held = [value.grad for value in self.updates.apart() if value.grad is not None]
        if held:
            torch._foreach_zero_(held)
        parts = self.lanes.micro_batches()
        labels = self.lanes.labels(parts)
        total: Tensor | None = None
        set_unpadded(self.lanes.adapters, None)
        for part in parts:
            batch = self.modality.fill(part.rows, len(lanes), self.shapes)
            losses = self._run(batch, numbers_of(batch, labels, self.lanes.keys(part)))
            total = losses.clone() if total is None else total + losses
        assert total is not None
        return total

    def _begin(self, lanes: list[RunState]) -> None:
        """Take up lanes and the buffers that they train in: what was recorded on others is of no use."""
        self._stacks = self.updates.stacks
        self.lanes = Lanes(self.modality, lanes)
        batches = self._look()
        if lanes[0].plan.max_tokens is not None:  # one number of rows for all steps: fewer shapes
            self.lanes.most_rows = min(len(rows) for rows in batches) // len(lanes)
            batches = self._look()
        self.shapes = self.modality.shapes(batches, len(lanes))
        self.made.clear()

    def _look(self) -> list[list[Any]]:
        """Return micro-batches of the pack, spread over its steps."""
        steps = max(len(state.order) for state in self.lanes.states)
        looked_at = range(0, steps, max(1, steps // LOOKED_AT))
        return [part.rows for step in looked_at for part in self.lanes.micro_batches(step)]

    def _run(self, batch: Batch, numbers: Numbers) -> Tensor:
        key = _key(batch, numbers)
        if key not in self.made:
            with self.updates.stacks.one_pass():
                losses = self.lanes.differentiate(batch, numbers).clone()
            self.made[key] = _Shape(batch, numbers, losses, self.updates.stacks.reached())
            return losses
        shape = self.made[key]
        shape.fill(batch, numbers)
        if shape.replay is None:
            shape.replay = self._recorded(shape)
        shape.replay()
        self.updates.stacks.reach(shape.reached)
        return shape.losses

    def _recorded(self, shape: _Shape) -> Callable[[], None]:
        """Return what runs this shape again."""

        def work() -> None:
            with self.updates.stacks.one_pass():
                shape.losses.copy_(self.lanes.differentiate(shape.batch, shape.numbers))

        return self.recording.of(work)


def _tensors(batch: Batch, numbers: Numbers) -> list[Tensor]:
    """Return all tensors of a batch; where some are views of one, that one."""
    parts = [batch.packed] if batch.packed is not None else [*batch.inputs.values(), batch.targets]
    parts += [batch.positions] if batch.packed is None and batch.positions is not None else []
    return [*parts, numbers.packed]


def _key(batch: Batch, numbers: Numbers) -> tuple[Any, ...]:
    """Return what batches that use the same buffers have in common."""
    inputs = tuple((name, tuple(value.shape), value.dtype) for name, value in batch.inputs.items())
    positions = None if batch.positions is None else len(batch.positions)
    return inputs, tuple(batch.targets.shape), positions, numbers.room, numbers.slots is None, numbers.keys is None
