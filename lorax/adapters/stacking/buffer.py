"""LaneBuffer: the trained tensors of K lanes as one tensor of values and one of gradients.

    values, gradients: (K, R, C)        row k is lane k; columns belong to the layers, one stretch for each tensor

Every adapter's parameter is a view of the values and its `.grad` one of the gradients, so that whoever reads or writes
a parameter sees the same memory. What lies beyond a lane's own shape is zero and stays so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lorax.adapters.low_rank import LowRankAdapter

_ALIGNED = 8
"""Every tensor begins at a multiple of this many numbers: 16 bytes of bfloat16, as fast kernels want it."""


@dataclass(frozen=True)
class Slot:
    """Where one lane's tensor lies in its row of the buffer, (R, C)."""

    rows: int
    start: int
    stop: int
    transposed: bool = False
    """B lies as its transpose, so that the columns of a layer are next to each other."""
    shape: tuple[int, ...] | None = None
    """Shape of a tensor that lies in one row; None: as it lies."""

    def view(self, row: Tensor) -> Tensor:
        """Return the tensor as a view of the lane's row of any buffer of this layout."""
        part = row[: self.rows, self.start : self.stop]
        if self.shape is not None:
            return part.view(self.shape)
        return part.mT if self.transposed else part


class LaneBuffer:
    """Parameters of K lanes in one buffer.

    Args:
        adapters: of each lane {layer: adapter}; all have the same layers.
        slots: of each lane {(layer, tensor): its place}.
        rows: R.
        columns: C.
    """

    def __init__(
        self,
        adapters: Sequence[Mapping[str, LowRankAdapter]],
        slots: Sequence[Mapping[tuple[str, str], Slot]],
        rows: int,
        columns: int,
    ):
        self.adapters = [dict(lane) for lane in adapters]
        self.slots = [dict(lane) for lane in slots]
        self.layers = list(self.adapters[0])
        first = next(iter(self._parameters()))[2]
        self.values = torch.zeros(len(adapters), rows, columns, dtype=first.dtype, device=first.device)
        self.gradients = torch.zeros_like(self.values)
        self.anchor = self.values.new_zeros(1).requires_grad_()
        """What tells autograd that the layers' outputs have a gradient."""
        self.reached: set[str] = set()
        """Layers that a backward pass went through in this step."""
        with torch.no_grad():
            for k, slot, parameter in self._parameters():
                place = slot.view(self.values[k])
                place.copy_(parameter)
                parameter.data = place
        self._attach()
        self._hooked = [
            (layer, parameter)
            for k, lane in enumerate(self.slots)
            for (layer, name) in lane
            if (parameter := self.adapters[k][layer].trained()[name])._post_accumulate_grad_hooks
        ]

    def __len__(self) -> int:
        return len(self.adapters)

    def named(self, k: int) -> dict[str, Slot]:
        """Return {"<layer>.<tensor>": place} of lane k, as `Adapters.named_parameters` names them."""
        return {f"{layer}.{name}": slot for (layer, name), slot in self.slots[k].items()}

    def unreached(self) -> list[str]:
        """Return the layers that no backward pass of this step went through."""
        return [] if len(self.reached) == len(self.layers) else sorted(set(self.layers) - self.reached)

    @property
    def hooked(self) -> bool:
        """Whether somebody is told when a parameter's gradient is complete."""
        return bool(self._hooked)

    def start(self) -> None:
        """Begin a step: what is derived from the values is made anew; `clear` has left the gradients at 0."""
        self.reached.clear()
        if self._attached is not self._first.grad:
            self._attach()

    def clear(self) -> None:
        """End a step: let the gradients be 0."""
        self.gradients.zero_()

    def complete(self) -> None:
        """Make the gradients those of the parameters, when the losses' backward passes are over."""
        self.finish_gradients()
        for layer, parameter in self._hooked if self._hooked else ():
            for hook in list((parameter._post_accumulate_grad_hooks or {}).values()) if layer in self.reached else ():
                hook(parameter)
        self._hooked = [each for each in self._hooked if each[1]._post_accumulate_grad_hooks]

    def derive_anew(self) -> None:
        """Forget what was derived from the values in this step."""
        raise NotImplementedError

    def gather(self) -> None:
        """Add gradients that were accumulated elsewhere to those of the buffer."""

    def finish_gradients(self) -> None:
        """Turn what the layers have accumulated into the parameters' gradients."""
        raise NotImplementedError

    def release(self) -> None:
        """Give every parameter memory of its own again, bit for bit, and no gradient."""
        for _, _, parameter in self._parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
            parameter.grad = None

    def parameter_ids(self) -> set[int]:
        """Return the ids of the parameters that lie here."""
        return {id(parameter) for _, _, parameter in self._parameters()}

    def _attach(self) -> None:
        """Let every parameter's gradient be a view of the buffer."""
        for k, slot, parameter in self._parameters():
            parameter.grad = slot.view(self.gradients[k])
        self._first = next(iter(self._parameters()))[2]
        self._attached = self._first.grad

    def _parameters(self) -> list[tuple[int, Slot, nn.Parameter]]:
        return [
            (k, slot, self.adapters[k][layer].trained()[name])
            for k, lane in enumerate(self.slots)
            for (layer, name), slot in lane.items()
        ]


def aligned(column: int) -> int:
    """Return the next column at which a tensor may begin."""
    return -(-column // _ALIGNED) * _ALIGNED
