"""The end of a step: what follows its backward passes, up to the one wait for the device.

    gradients complete -> penalties, training rules -> norms -> clipping and update -> the host reads K losses and norms

All but the reading is handed to the device without a wait; of lanes in buffers it can be recorded as one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorax.adapters.stacking.stacks import Stacks
from lorax.training.pack_update import PackUpdate
from lorax.training.recording import Recording
from lorax.training.state import RunState


class Ending:
    """Ends steps as they come.

    Args:
        updates: of the pack.
    """

    def __init__(self, updates: PackUpdate):
        self.updates = updates

    def run(self, losses: Tensor) -> None:
        """Update every run that is going, wait for the device, once, and take note of the step.

        Training rules come between: they see complete gradients before they are clipped, and clipped ones after the
        update. Where nothing comes between, completing and clearing the gradients belong to the recorded piece.

        Args:
            losses: (K,) of the runs in the batch.
        """
        updates, lanes = self.updates, self.updates.lanes
        penalties: list[Tensor | None] = [None] * len(lanes)
        between = updates.give_up_unreached()
        if not between and updates.something_between:
            updates.complete()
            between = True
        if between:
            penalties = _penalties(lanes)
            updates.unscale()
            for state in lanes:
                if state.going:
                    state.after_backward()
        norms = self._update(losses, _stacked(penalties, losses), whole=not between)
        self._read(losses, norms, penalties)
        if between:
            updates.clear()

    def _update(self, losses: Tensor, penalties: Tensor | None, whole: bool) -> Tensor:
        """Clip and update; return the gradient norms. All on the device.

        Args:
            losses: of the runs in the batch.
            penalties: of the runs in the batch, 0 where one has none; None: none has.
            whole: complete the gradients first, and clear them at the end.
        """
        if whole:
            self.updates.complete()
            self.updates.unscale()
        norms = self.updates.norms()
        self.updates.apply(losses, norms, penalties)
        if whole:
            self.updates.clear()
        return norms

    def _read(self, losses: Tensor, norms: Tensor, penalties: list[Tensor | None]) -> None:
        given = [penalty.to(losses.dtype) for penalty in penalties if penalty is not None]
        parts = [losses, norms.to(losses), *([torch.stack(given)] if given else [])]
        numbers = torch.cat(parts).tolist()
        rest = iter(numbers[len(losses) + len(norms) :])
        read_penalties = [None if penalty is None else next(rest) for penalty in penalties]
        self.updates.record(numbers[: len(losses)], numbers[len(losses) : len(losses) + len(norms)], read_penalties)


@dataclass
class _Recorded:
    """An update with its fixed inputs and output."""

    losses: Tensor
    penalties: Tensor | None
    norms: Tensor
    replay: Callable[[], None] | None = None


class RecordedEnding(Ending):
    """Ends steps by replaying the update of the lanes in buffers; what lies in none is updated after the reading.

    Its inputs lie in fixed places: gradients, values and moments, `LaneAdamW.now`, which runs are still going, losses
    and penalties. The first update runs as it is, the second is recorded: one recording whatever the batch's shape.

    Args:
        updates: of the pack.
        recording: records.
    """

    def __init__(self, updates: PackUpdate, recording: Recording):
        super().__init__(updates)
        self.recording = recording
        self.made: dict[Any, _Recorded] = {}
        self._stacks: Stacks | None = None

    def _update(self, losses: Tensor, penalties: Tensor | None, whole: bool) -> Tensor:
        if self._stacks is not self.updates.stacks:
            self._stacks = self.updates.stacks
            self.made.clear()
        if not self._stacks.buffers:
            return super()._update(losses, penalties, whole)
        apart = [value.grad for value in self.updates.apart()]
        key = (whole, penalties is None, *(None if each is None else each.data_ptr() for each in apart))
        if key not in self.made:
            norms = super()._update(losses, penalties, whole)
            own = None if penalties is None else penalties.clone()
            self.made[key] = _Recorded(losses.clone(), own, norms.clone())
            return norms
        made = self.made[key]
        made.losses.copy_(losses)
        if made.penalties is not None and penalties is not None:
            made.penalties.copy_(penalties)
        if made.replay is None:

            def work() -> None:
                made.norms.copy_(Ending._update(self, made.losses, made.penalties, whole))

            made.replay = self.recording.of(work)
        made.replay()
        return made.norms


def _penalties(lanes: list[RunState]) -> list[Tensor | None]:
    """Differentiate what training rules add to the losses, once a step; return each run's, detached."""
    penalties = [state.penalty() if state.going else None for state in lanes]
    given = [
        state.loss_weight * penalty
        for state, penalty in zip(lanes, penalties, strict=True)
        if penalty is not None and not state.penalises_batches
    ]
    if given:
        (torch.stack(given).sum() * lanes[0].loss_scale).backward()
    return [None if penalty is None else penalty.detach() for penalty in penalties]


def _stacked(penalties: list[Tensor | None], like: Tensor) -> Tensor | None:
    """Return penalties as one tensor, 0 where there is none; None where there is none at all."""
    if all(penalty is None for penalty in penalties):
        return None
    zero = like.new_zeros(())
    return torch.stack([zero if penalty is None else penalty.to(like) for penalty in penalties])
