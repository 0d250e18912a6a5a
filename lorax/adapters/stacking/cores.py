"""StackedCores: the trained cores of lanes that share frozen B and A, in one buffer.

    y_k += drop(x_k) A^T (s_k M_k)^T B^T        A and B are done once for all lanes: `SharedBasisGroup`

s M of all lanes and layers is one operation a step. The gradient of s M is accumulated; `complete` multiplies it by s.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorax.adapters.dropout import scale
from lorax.adapters.fused.shared_basis import SharedBasisGroup
from lorax.adapters.stacking.buffer import LaneBuffer, Slot, aligned

if TYPE_CHECKING:
    from lorax.adapters.low_rank import LowRankAdapter


def core_key(adapter: LowRankAdapter) -> Hashable | None:
    """Return what lanes must have in common at a layer for their cores to be stacked; None: it cannot be."""
    shared = {"A", "B"} <= adapter.shared and not adapter.shifts_base
    if not shared or adapter.trainable != {"M"}:
        return None
    return (adapter.header["kind"], id(adapter.start("B")), id(adapter.start("A")), adapter.start("M").shape)


class StackedCores(LaneBuffer):
    """Lanes whose cores train between frozen factors that they share.

    Args:
        adapters: of each lane {layer: adapter}; all have the same layers and, at each, the same `core_key`.
    """

    def __init__(self, adapters: Sequence[Mapping[str, LowRankAdapter]]):
        self.columns: dict[str, slice] = {}
        at = 0
        for layer, adapter in adapters[0].items():
            self.columns[layer] = slice(at, at + adapter.start("M").numel())
            at = aligned(self.columns[layer].stop)
        super().__init__(adapters, [self._slots(lane) for lane in adapters], 1, at)
        self.factor = torch.ones_like(self.values)
        for k, lane in enumerate(self.adapters):
            for layer, adapter in lane.items():
                drops = adapter.q and adapter.training
                self.factor[k, :, self.columns[layer]] = adapter.eta * (scale(adapter.q) if drops else 1.0)
        self._scaled: dict[torch.dtype, Tensor] = {}
        self._fresh: set[torch.dtype] = set()

    def _slots(self, lane: Mapping[str, LowRankAdapter]) -> dict[tuple[str, str], Slot]:
        return {
            (layer, "M"): Slot(1, columns.start, columns.stop, shape=tuple(lane[layer].start("M").shape))
            for layer, columns in self.columns.items()
        }

    def start(self) -> None:
        """Begin a step."""
        super().start()
        self.derive_anew()

    def derive_anew(self) -> None:
        """Forget s M of this step."""
        self._fresh.clear()

    def scaled(self, layer: str, dtype: torch.dtype) -> Tensor:
        """Return s M of all lanes at a layer, (K, numbers), as the values are at this step."""
        if dtype not in self._fresh:
            if dtype not in self._scaled:
                self._scaled[dtype] = torch.empty_like(self.values, dtype=dtype)
            torch.mul(self.values, self.factor, out=self._scaled[dtype])
            self._fresh.add(dtype)
        return self._scaled[dtype][:, 0, self.columns[layer]]

    def finish_gradients(self) -> None:
        """Multiply the gradients by s."""
        self.gradients.mul_(self.factor)


class CoresAt(SharedBasisGroup):
    """The stacked cores at one layer.

    Args:
        stacked: of all layers.
        layer: the layer's name.
        positions: of the lanes among the active ones, ascending.
        count: number of active lanes.
    """

    keeps_input = False

    def __init__(self, stacked: StackedCores, layer: str, positions: Sequence[int], count: int):
        adapters = [lane[layer] for lane in stacked.adapters]
        super().__init__(list(zip(positions, adapters, strict=True)), count)
        self.stacked, self.layer = stacked, layer
        self.anchor = stacked.anchor
        self.shape = tuple(adapters[0].start("M").shape)
        self.cells = self._cells()

    def _cells(self) -> Tensor | None:
        """Return the flat cells that the numbers of a sparse core stand at, (K, numbers); None of other cores."""
        if self.adapters[0].header["kind"] != "sparse":
            return None
        width = self.adapters[0].start("A").shape[0]
        return torch.stack(
            [adapter.get_buffer("rows") * width + adapter.get_buffer("cols") for adapter in self.adapters]
        )

    def cores(self, dtype: torch.dtype, lane_scales: list[float]) -> Tensor:
        """Return s_k M_k: (K, 1, k) if all are diagonal, else (K, r_out, r_in)."""
        numbers = self.stacked.scaled(self.layer, dtype)
        if self.cells is None:
            return numbers[:, None] if self.diagonal else numbers.view(-1, *self.shape)
        rows, width = self.adapters[0].start("B").shape[1], self.adapters[0].start("A").shape[0]
        full = numbers.new_zeros(len(self.adapters), rows * width).scatter_(1, self.cells, numbers)
        full = full.view(-1, rows, width)
        return full.diagonal(dim1=1, dim2=2)[:, None] if self.diagonal else full

    def _grads(self, gh2: Tensor, h: Tensor, scales: list[float]) -> list[Tensor | None]:  # type: ignore[override]
        """Accumulate the gradients of s M; autograd gets none."""
        self.stacked.reached.add(self.layer)
        place = self.stacked.gradients[:, 0, self.stacked.columns[self.layer]]
        if self.cells is None and self.diagonal:
            place.add_((gh2 * h).sum(1))
        elif self.cells is None and place.dtype == h.dtype:
            place.view(-1, *self.shape).baddbmm_(gh2.mT, h)
        else:
            full = torch.bmm(gh2.mT, h).flatten(1)
            place.add_(full if self.cells is None else full.gather(1, self.cells))
        return [None]
