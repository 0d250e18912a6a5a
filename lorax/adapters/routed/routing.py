"""Routing: which lane each row of a batch uses, worked out once for all layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorax.adapters.layer_adapter import LayerAdapter
from lorax.adapters.low_rank import LowRankAdapter
from lorax.adapters.routed.gathered import Gathered, gather

BASE = -1
"""In a lane's place: the base model alone."""


class Routing:
    """The lanes of a batch's rows.

    Args:
        lanes: (rows,), whole numbers: the lane of row i, or -1 for the base alone.
    """

    def __init__(self, lanes: Tensor):
        self.lanes: list[int] = [int(lane) for lane in lanes]
        self.rows: dict[int, list[int]] = {}
        """{lane: its rows}."""
        for row, lane in enumerate(self.lanes):
            self.rows.setdefault(lane, []).append(row)
        self._on: dict[tuple[int, torch.device], Tensor] = {}
        self._gathered: dict[str, Gathered | None] = {}

    def __len__(self) -> int:
        return len(self.lanes)

    def __getstate__(self) -> dict[str, object]:
        """Leave out what is made from the adapters again."""
        return {**self.__dict__, "_gathered": {}}

    def repeated(self, times: int) -> Routing:
        """Return the routing of a batch in which each row stands this many times, one after the other."""
        return Routing(torch.tensor(self.lanes).repeat_interleave(times))

    def rows_of(self, lane: int, device: torch.device) -> Tensor:
        """Return the rows of a lane as an index on a device."""
        key = (lane, device)
        if key not in self._on:
            self._on[key] = torch.tensor(self.rows[lane], device=device)
        return self._on[key]

    def gathered(self, layer: str, adapters: Mapping[int, LayerAdapter]) -> Gathered | None:
        """Return a layer's adapters stacked for these rows; None where they are computed one by one.

        Args:
            layer: its name.
            adapters: {lane: its adapter there}, of the lanes that rows use.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if layer in self._gathered:
            kept = self._gathered[layer]
            low = {lane: adapter for lane, adapter in adapters.items() if isinstance(adapter, LowRankAdapter)}
            if kept is None or (len(low) == len(adapters) and kept.fits(low)):
                return kept
        self._gathered[layer] = gather(adapters, self.lanes)
        return self._gathered[layer]
