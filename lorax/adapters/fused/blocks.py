"""Blocks of rows: which of the active lanes a group takes, and products on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorax.adapters.dropout import below, kept
from lorax.adapters.layer_adapter import LayerAdapter


class Blocks:
    """Some positions among `count` equal blocks of rows, one block for each active lane.

    Args:
        positions: ascending.
        count: number of blocks.
    """

    def __init__(self, positions: list[int], count: int):
        self.positions = positions
        first, last = positions[0], positions[-1] + 1
        self.slice = slice(first, last) if last - first == len(positions) else None
        self.all = len(positions) == count
        self._index: dict[torch.device, Tensor] = {}

    def take(self, x3: Tensor) -> Tensor:
        """Return the blocks, as a view where they are neighbours."""
        if self.all:
            return x3
        return x3[self.slice] if self.slice is not None else x3.index_select(0, self.index(x3.device))

    def index(self, device: torch.device) -> Tensor:
        """Return the positions as a tensor, made once for a device."""
        if device not in self._index:
            with torch.inference_mode(False):
                self._index[device] = torch.tensor(self.positions, device=device)
        return self._index[device]

    def add(self, out3: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a @ b, (K, T, m), to the blocks of `out3`, (K_active, T, m), in place."""
        if self.slice is not None:
            self.take(out3).baddbmm_(a, b)
        else:
            self.accumulate(out3, product(a, b))

    def accumulate(self, out3: Tensor, value: Tensor, mask: Tensor | None = None) -> None:
        """Add a value, (K, T, m), times a mask if there is one, to the blocks of `out3`, in place."""
        if self.slice is not None:
            blocks = self.take(out3)
            blocks.add_(value) if mask is None else blocks.addcmul_(value, mask)
        else:
            value = value if mask is None else value * mask
            out3.index_add_(0, self.index(out3.device), value)


def group_masks(drawn: Tensor, adapters: Sequence[LayerAdapter], dtype: torch.dtype) -> Tensor:
    """Return the dropout masks of a group, (K, T, n), 1 where an entry stays and 0 where it is dropped.

    Args:
        drawn: (K, T, n) random bytes.
        adapters: K of them; each says how many byte values drop an entry.
        dtype: of the masks.
    """
    return kept(drawn, below([adapter.q for adapter in adapters], drawn.device), dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, or the batch of products a[k] @ b[k]."""
    return torch.mm(a, b) if a.ndim == 2 else torch.bmm(a, b)
