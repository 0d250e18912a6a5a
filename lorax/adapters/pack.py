"""Pack: the state that K lanes on one frozen base share at run time.

The batch is K equal contiguous blocks of rows, one for each active lane, in order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from lorax.errors import UserError

_REMEMBERED = 256


class Pack:
    """Which lanes are active, which are switched off, and their random generators.

    Args:
        count: number of lanes.
    """

    def __init__(self, count: int):
        self.lanes: tuple[int, ...] = tuple(range(count))
        """The active lanes, in the order of their row blocks."""
        self.off: set[int] = set()
        """Lanes whose rows get the base model's own output for now."""
        self.generators: dict[int, torch.Generator] = {}
        """Dropout generators by lane; a lane without one draws from torch's global generator."""
        self._seeds: OrderedDict[tuple[int, int], int] = OrderedDict()

    @contextmanager
    def active(self, lanes: Sequence[int]) -> Iterator[None]:
        """Restrict the forward to some lanes: the batch then is len(lanes) blocks of rows.

        Raises:
            UserError: no lane, or one that is not there.
        """
        known, before = set(self.lanes), self.lanes
        if not lanes or not set(lanes) <= known or len(set(lanes)) != len(lanes):
            raise UserError(f"active lanes {list(lanes)}: choose distinct ones among {sorted(known)}")
        self.lanes = tuple(lanes)
        try:
            yield
        finally:
            self.lanes = before

    def remove(self, lane: int) -> None:
        """Take a lane out for good; the batch has one block of rows fewer from now on."""
        self.lanes = tuple(other for other in self.lanes if other != lane)

    def seed(self, lane: int) -> int:
        """Draw the seed of one dropout mask.

        With a generator of its own the lane draws from that; a draw of torch's global generator is
        remembered beside it, so that gradient checkpointing, which puts the global generator back
        for its second forward, gets the same mask again.
        """
        token = int(torch.randint(2**62, ()))
        generator = self.generators.get(lane)
        if generator is None:
            return token
        key = (lane, token)
        if key not in self._seeds:
            self._seeds[key] = int(torch.randint(2**62, (), generator=generator))
            if len(self._seeds) > _REMEMBERED * max(1, len(self.lanes)):
                self._seeds.popitem(last=False)
        return self._seeds[key]
