"""PackState: what K runs on one frozen base share at run time.

The batch is K equal contiguous blocks of rows, one for each active lane, in order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from lorax.adapters.routed.routing import BASE, Routing
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.stacking.stacks import Stacks

_REMEMBERED = 256


class PackState:
    """Which lanes are active, which are switched off, and their random generators.

    Args:
        count: number of lanes.
    """

    def __init__(self, count: int):
        self.installed: tuple[int, ...] = tuple(range(count))
        """All lanes, active or not."""
        self.lanes: tuple[int, ...] = self.installed
        """The active lanes, in the order of their row blocks."""
        self.off: set[int] = set()
        """Lanes whose rows get the base model's own output for now."""
        self.generators: dict[int, torch.Generator] = {}
        """Dropout generators by lane; a lane without one draws from torch's global generator."""
        self.widths: dict[int, dict[int, int]] = {}
        """{lane: {padded tokens: tokens}} of the batch at hand, for lanes whose rows are shorter than the
        batch they share: their dropout masks are drawn at the width they have when alone."""
        self.unpadded: tuple[tuple[int, int], Tensor] | None = None
        """((rows, tokens), flat indices of the tokens that are no padding) of the batch at hand: the base products
        leave out the others. Only for batches in which no token reads what stands at a padded one."""
        self.routing: Routing | None = None
        """Which lane each row of the batch uses; None: equal blocks, in order."""
        self.frozen_key: object | None = None
        """Names the current `frozen_factors` block; None outside."""
        self.stacks: Stacks | None = None
        """The buffers that trained tensors lie in while losses are differentiated; None outside of training."""
        self._last: tuple[Any, ...] = ()
        self._seeds: OrderedDict[tuple[int, int], int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out weak references, which a copy of the model cannot hold."""
        return {**self.__dict__, "_last": ()}

    @contextmanager
    def active(self, lanes: Sequence[int]) -> Iterator[None]:
        """Restrict the forward to some lanes: the batch then is len(lanes) blocks of rows.

        Raises:
            UserError: no lane, or one that is not there.
        """
        known, before = set(self.installed), self.lanes
        if not lanes or not set(lanes) <= known or len(set(lanes)) != len(lanes):
            raise UserError(f"active lanes {list(lanes)}: choose distinct ones among {sorted(known)}")
        self.lanes = tuple(lanes)
        try:
            yield
        finally:
            self.lanes = before

    @contextmanager
    def routed(self, routing: Tensor) -> Iterator[None]:
        """Let each row of the next batches name its lane, in place of equal blocks: many adapters in one batch.

        To give a row another adapter, change its number; no weight is written. The layers then run in plain
        operations. A fresh head still takes its rows in equal blocks.

        Args:
            routing: (rows,), whole numbers: the lane of row i, or -1 for the base model's own output.

        Raises:
            UserError: a lane that is not there.
        """
        known, before = {-1, *self.lanes}, self.routing
        if not isinstance(routing, Tensor) or routing.ndim != 1 or routing.is_floating_point():
            raise UserError("rows are routed by one whole number each: a tensor of shape (rows,)")
        if unknown := sorted(set(routing.tolist()) - known):
            raise UserError(f"rows are routed to lanes {unknown}: choose among {sorted(known)}")
        self.routing = Routing(routing)
        try:
            yield
        finally:
            self.routing = before

    @contextmanager
    def frozen_factors(self) -> Iterator[None]:
        """Promise that no trained tensor changes inside: stacked and cast factors are kept between calls.

        For evaluation, above all for decoding token by token.
        """
        before, self.frozen_key = self.frozen_key, object()
        try:
            yield
        finally:
            self.frozen_key = before

    @contextmanager
    def held(self, stacks: Stacks) -> Iterator[None]:
        """Let the layers compute from the buffers of lanes, and accumulate gradients there, not in `.grad` by autograd.

        For forward passes whose losses are differentiated inside, once and without a graph of the derivative.
        """
        before, self.stacks = self.stacks, stacks
        try:
            yield
        finally:
            self.stacks = before

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return x in `dtype`; layers that read the same x one after the other get the same cast."""
        if x.dtype == dtype:
            return x
        if x.is_inference():
            return x.to(dtype)
        key = (x._version, dtype, torch.is_grad_enabled())
        if self._last and self._last[0]() is x and self._last[1] == key:
            made = self._last[2]()
            if made is not None:
                return made
        made = x.to(dtype)
        self._last = (TensorWeakRef(x), key, TensorWeakRef(made))
        return made

    def width(self, lane: int, shape: tuple[int, ...]) -> int | None:
        """Return a lane's own number of tokens for an input of shape (rows, tokens, n), if it differs."""
        return self.widths.get(lane, {}).get(shape[1]) if len(shape) > 2 else None

    def unpadded_tokens(self, x: Tensor) -> Tensor | None:
        """Return the flat indices of the tokens of x, (rows, tokens, n), that are no padding, if they are known."""
        if self.unpadded is None or x.ndim != 3 or x.shape[:2] != self.unpadded[0]:
            return None
        return self.unpadded[1]

    def remove(self, lane: int) -> None:
        """Take a lane out for good; the batch has one block of rows fewer from now on."""
        self.installed = tuple(other for other in self.installed if other != lane)
        self.lanes = tuple(other for other in self.lanes if other != lane) or ((BASE,) if self.installed else ())

    def seed(self, lane: int) -> int:
        """Draw the seed of one dropout mask.

        With a generator of its own the lane draws from that; a draw of torch's global generator is
        remembered beside it, so that gradient checkpointing, which puts the global generator back
        for its second forward, gets the same mask again.
        """
        drawn = int(torch.randint(2**62, ()))
        generator = self.generators.get(lane)
        if generator is None:
            return drawn
        key = (lane, drawn)
        if key not in self._seeds:
            self._seeds[key] = int(torch.randint(2**62, (), generator=generator))
            if len(self._seeds) > _REMEMBERED * max(1, len(self.lanes)):
                self._seeds.popitem(last=False)
        return self._seeds[key]
