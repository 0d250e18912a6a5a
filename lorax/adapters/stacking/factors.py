"""StackedFactors: A and B of lanes of any rank, recentred or not, in one buffer, and what a step derives from it.

    h = drop(x) D^T        D: (K, R, n)         D = s A             s = eta, times the dropout scale
    y += h U               U: (K, R, m)         U = B^T

Where one lane is carried, all are, with twice the rows:

    D = s [A0 + dA ; dA]        U = [dB^T ; B0^T]        of a lane that is not recentred A0 = B0 = 0, dA = A, dB = B

which is s B A, and the lane still trains A and B themselves, so that weight decay acts on them. D and U of all layers
are made by one to three operations a step. The gradient of s A is accumulated; `complete` multiplies it by s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorax.adapters.dropout import scale
from lorax.adapters.stacking.buffer import LaneBuffer, Slot, aligned

if TYPE_CHECKING:
    from lorax.adapters.low_rank import LowRankAdapter


class StackedFactors(LaneBuffer):
    """Lanes with an identity core whose A and B train.

    Args:
        adapters: of each lane {layer: adapter}; all have the same layers.
    """

    def __init__(self, adapters: Sequence[Mapping[str, LowRankAdapter]]):
        layers = list(adapters[0])
        self.carried = any(adapter.carries for lane in adapters for adapter in lane.values())
        rows = max(adapter.rank for lane in adapters for adapter in lane.values())
        self.R = rows
        self.columns: dict[str, tuple[slice, slice]] = {}
        """{layer: the columns of its A, those of its B}"""
        at, starts = 0, {}
        for letter, axis in (("A", 1), ("B", 0)):
            for layer in layers:
                width = adapters[0][layer].start(letter).shape[axis]
                starts[layer, letter] = slice(at, at + width)
                at = aligned(at + width)
            if letter == "A":
                self.N = at
                """Columns of all A; those of all B follow."""
        self.columns = {layer: (starts[layer, "A"], starts[layer, "B"]) for layer in layers}
        self.rank_at = {layer: max(lane[layer].rank for lane in adapters) for layer in layers}
        super().__init__(adapters, [self._slots(lane) for lane in adapters], rows, at)
        self.factor = self._factor()
        self._starts = self._scaled_starts() if self.carried else None
        self._in_dtype: dict[torch.dtype, Products] = {}

    def _slots(self, lane: Mapping[str, LowRankAdapter]) -> dict[tuple[str, str], Slot]:
        slots = {}
        for layer, adapter in lane.items():
            a, b = self.columns[layer]
            prefix = "d" if adapter.shifts_base else ""
            slots[layer, f"{prefix}B"] = Slot(adapter.rank, b.start, b.stop, transposed=True)
            slots[layer, f"{prefix}A"] = Slot(adapter.rank, a.start, a.stop)
        return slots

    def _factor(self) -> Tensor:
        """Return s on the columns of A and 1 elsewhere, (K, 1, C)."""
        factor = torch.ones_like(self.values[:, :1])
        for k, lane in enumerate(self.adapters):
            for layer, adapter in lane.items():
                drops = adapter.q and adapter.training
                factor[k, :, self.columns[layer][0]] = adapter.eta * (scale(adapter.q) if drops else 1.0)
        return factor

    def _scaled_starts(self) -> Tensor:
        """Return s A0 and B0 of all lanes, (K, R, C)."""
        starts = torch.zeros_like(self.values)
        for k, lane in enumerate(self.adapters):
            for layer, adapter in lane.items():
                if adapter.carries:
                    for letter, columns in zip("AB", self.columns[layer], strict=True):
                        start = adapter.start(letter)
                        starts[k, : adapter.rank, columns] = start if letter == "A" else start.mT
        return starts.mul_(self.factor)

    def start(self) -> None:
        """Begin a step."""
        super().start()
        self.derive_anew()

    def derive_anew(self) -> None:
        """Forget D and U of this step."""
        for products in self._in_dtype.values():
            products.start()

    def gather(self) -> None:
        """Add what was accumulated in another dtype."""
        for products in self._in_dtype.values():
            products.give(self.gradients)
            products.start()

    def products(self, dtype: torch.dtype) -> Products:
        """Return D and U in the dtype of the products, as the values are at this step."""
        if dtype not in self._in_dtype:
            self._in_dtype[dtype] = Products(self, dtype)
        return self._in_dtype[dtype].made()

    def fill(self, D_U: Tensor, first: bool) -> None:
        """Write D and U of all layers into a buffer, (K, R, C), or (K, 2 R, C) where carried.

        Args:
            D_U: the buffer, in the dtype of the products.
            first: what never changes is not there yet.
        """
        if self._starts is None:
            torch.mul(self.values, self.factor, out=D_U)
            return
        R, N = self.R, self.N
        if first:
            D_U[:, R:, N:].copy_(self._starts[:, :, N:])
        dA, s = self.values[:, :, :N], self.factor[:, :, :N]
        torch.addcmul(self._starts[:, :, :N], dA, s, out=D_U[:, :R, :N])
        torch.mul(dA, s, out=D_U[:, R:, :N])
        D_U[:, :R, N:].copy_(self.values[:, :, N:])

    def finish_gradients(self) -> None:
        """Add what was accumulated in another dtype, and multiply by s."""
        for products in self._in_dtype.values():
            products.give(self.gradients)
        self.gradients.mul_(self.factor)


class Products:
    """D and U of all layers in the dtype of the products, and the gradients as the products leave them.

    Args:
        factors: what they are made from.
        dtype: of the products.
    """

    def __init__(self, factors: StackedFactors, dtype: torch.dtype):
        self.factors = factors
        values = factors.values
        rows = values.shape[1] * (2 if factors.carried else 1)
        self.buffer = torch.zeros(len(values), rows, values.shape[2], dtype=dtype, device=values.device)
        self.same = dtype == values.dtype
        self.gradients = factors.gradients if self.same else torch.zeros_like(values, dtype=dtype)
        self._written: set[tuple[str, int]] = set()
        """Gradients of this step that are in a buffer of their own: (layer, 0 for A, 1 for B)."""
        self._fresh, self._first = False, True

    def start(self) -> None:
        """Forget what the last step made."""
        self._fresh = False
        self._written.clear()

    def made(self) -> Products:
        """Make D and U, once in a step."""
        if not self._fresh:
            self.factors.fill(self.buffer, self._first)
            self._fresh, self._first = True, False
        return self

    def views(self, layer: str) -> tuple[Tensor, Tensor]:
        """Return D and U of a layer: (K, R, n), (K, R, m); twice the rows where carried."""
        rank = self.factors.rank_at[layer]
        rows = self.factors.R + rank if self.factors.carried else rank
        a, b = self.factors.columns[layer]
        return self.buffer[:, :rows, a], self.buffer[:, :rows, b]

    def gradient_views(self, layer: str) -> tuple[Tensor, Tensor]:
        """Return where the gradients of s A and B^T of a layer are accumulated: (K, R, n), (K, R, m)."""
        rank = self.factors.rank_at[layer]
        a, b = self.factors.columns[layer]
        return self.gradients[:, :rank, a], self.gradients[:, :rank, b]

    def add_gradient(self, layer: str, which: int, place: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a @ b to a gradient: in place, or, in a coarser dtype, as a sum in that of the parameters."""
        if self.same:
            place.baddbmm_(a, b) if place.ndim == 3 else place.addmm_(a, b)
        elif (layer, which) not in self._written:
            self._written.add((layer, which))
            torch.bmm(a, b, out=place) if place.ndim == 3 else torch.mm(a, b, out=place)
        else:  # a layer that is passed twice in a step, or a further micro-batch
            columns, rank = self.factors.columns[layer][which], self.factors.rank_at[layer]
            target = self.factors.gradients[:, :rank, columns]
            added = torch.bmm(a, b) if place.ndim == 3 else torch.mm(a, b)[None]
            target.add_(added)

    def give(self, gradients: Tensor) -> None:
        """Add this step's gradients to those of the parameters."""
        if self.same or not self._written:
            return
        for layer in self.factors.layers:
            for which, place in enumerate(self.gradient_views(layer)):
                if (layer, which) not in self._written:
                    place.zero_()
        gradients.add_(self.gradients)
