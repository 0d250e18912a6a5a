"""Rows of a batch with different low-rank adapters, in two batched products.

    y_i + x_i A_l^T B_l^T        l: the adapter of row i; A: (L, R, n), B: (L, m, R), eta in B

Adapters of a lower rank than R are filled up with zeros, and a row of the base alone meets a pair of zeros. Without
gradients only: the pairs are copies, kept while the adapters' tensors stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorax.adapters import core
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.adapters.low_rank import LowRankAdapter

_WASTE = 2
"""Filling up with zeros may take this many times the adapters' own numbers."""
_COPIED = 32
"""Rows of one adapter each get a copy of its pair; above this rank that takes longer than adapter after adapter."""


class Gathered:
    """The stacked pairs of one layer's adapters, and which of them each row uses.

    Args:
        adapters: {lane: its adapter here}.
        lanes: of every row of the batch; one without an adapter here uses none.
    """

    def __init__(self, adapters: Mapping[int, LowRankAdapter], lanes: Sequence[int]):
        self._sources = _tensors(adapters)
        self._versions = [tensor._version for tensor in self._sources]
        pairs = {lane: added_pair(adapter) for lane, adapter in adapters.items()}
        rank = max(A.shape[0] for _, A in pairs.values())
        index = order(adapters, lanes)
        B, A = next(iter(pairs.values()))
        count = max(index) + 1
        self.A, self.B = A.new_zeros(count, rank, A.shape[1]), B.new_zeros(count, B.shape[0], rank)
        for lane, position in zip(lanes, index, strict=True):
            if lane in pairs:
                B, A = pairs[lane]
                self.A[position, : A.shape[0]] = A
                self.B[position, :, : B.shape[1]] = B
        self.index = None if index == list(range(count)) else torch.tensor(index, device=A.device)
        self._cast: tuple[torch.dtype, Tensor, Tensor] | None = None

    def fits(self, adapters: Mapping[int, LowRankAdapter]) -> bool:
        """Whether these are the adapters that were stacked, with the values that they had."""
        now = _tensors(adapters)
        same = len(now) == len(self._sources) and all(a is b for a, b in zip(now, self._sources, strict=True))
        return same and [tensor._version for tensor in now] == self._versions and now[0].device == self.A.device

    def output(self, x: Tensor, base: Tensor) -> Tensor:
        """Return the adapted output, in the dtype of `base`.

        Args:
            x: (rows, ..., n).
            base: (rows, ..., m).
        """
        if self._cast is None or self._cast[0] != base.dtype:
            self._cast = (base.dtype, self.A.to(base.dtype), self.B.to(base.dtype))
        _, A, B = self._cast
        if self.index is not None:
            A, B = A[self.index], B[self.index]
        rows = x.reshape(len(x), -1, x.shape[-1]).to(base.dtype)
        y = torch.baddbmm(base.reshape(len(base), -1, base.shape[-1]), torch.bmm(rows, A.mT), B.mT)
        return y.view(base.shape)


def gather(adapters: Mapping[int, LayerAdapter], lanes: Sequence[int]) -> Gathered | None:
    """Return the stacked pairs, or None where the rows are better computed adapter by adapter.

    That is, where one of them is not low-rank, drops inputs, is so much wider than the others that zeros prevail, or
    is wide and serves several rows; and where there is only one.
    """
    low = {lane: adapter for lane, adapter in adapters.items() if isinstance(adapter, LowRankAdapter)}
    if not 1 < len(low) == len(adapters) or any(adapter.q and adapter.training for adapter in low.values()):
        return None
    widths = [sum(A.shape[0] for _, _, A in adapter.terms()) for adapter in low.values()]
    copies = len(set(order(low, lanes))) < len(lanes)
    if max(widths) * len(widths) > _WASTE * sum(widths) or (copies and max(widths) > _COPIED):
        return None
    return Gathered(low, lanes)


def order(adapters: Mapping[int, LowRankAdapter], lanes: Sequence[int]) -> list[int]:
    """Return each row's place in the stack: adapters in the order of their first rows, one place for rows without."""
    places: dict[int | None, int] = {}
    return [places.setdefault(lane if lane in adapters else None, len(places)) for lane in lanes]


def added_pair(adapter: LowRankAdapter) -> tuple[Tensor, Tensor]:
    """Return (B', A') whose product the adapter adds to the frozen weight; eta is in B'."""
    terms = adapter.terms()
    B, A = [core.left_multiply(B, M) for B, M, _ in terms], [A for _, _, A in terms]
    return adapter.eta * (B[0] if len(B) == 1 else torch.cat(B, 1)), A[0] if len(A) == 1 else torch.cat(A)


def _tensors(adapters: Mapping[int, LowRankAdapter]) -> list[Tensor]:
    return [
        tensor
        for a in adapters.values()
        for held in (a._parameters, a._buffers)
        for tensor in held.values()
        if tensor is not None
    ]
