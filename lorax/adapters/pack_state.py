"""PackState: what K runs on one frozen base share at run time.

The batch is K equal contiguous blocks of rows, one for each active lane, in order.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from lorax.adapters.dropout import key
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
        self.masks: tuple[tuple[int, ...], Tensor] | None = None
        """(active lanes, their (K,) keys) from which `masks_from` has the masks drawn; None: from the generators."""
        self.unpadded: tuple[tuple[int, int], Tensor] | None = None
        """((rows, tokens), flat indices of the tokens that are no padding) of the batch at hand: the base products
        leave out the others. Only for batches in which no token reads what stands at a padded one."""
        self.token_counts: Tensor | None = None
        """(rows, tokens): of how many examples each place of the batch at hand holds a token, 0 for padding. None: not
        told, each place counts once. Of use to methods that take means over tokens."""
        self.routing: Routing | None = None
        """Which lane each row of the batch uses; None: equal blocks, in order."""
        self.frozen_key: object | None = None
        """Names the current `frozen_factors` block; None outside."""
        self.stacks: Stacks | None = None
        """The buffers that trained tensors lie in while losses are differentiated; None outside of training."""
        self._last: tuple[Any, ...] = ()
        self._seeds: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._calls: Counter[str] = Counter()
        self._again: Counter[str] | None = None
        """The calls of layers as a block that is computed again counts them; None: no such block is under way."""

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
    def held(self, stacks: Stacks | None) -> Iterator[None]:
        """Let the layers compute from the buffers of lanes, and accumulate gradients there, not in `.grad` by autograd.

        For forward passes whose losses are differentiated inside, once and without a graph of the derivative.

        Args:
            stacks: the buffers; None: compute from the parameters themselves inside the block.
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

    def unpadded_tokens(self, x: Tensor) -> Tensor | None:
        """Return the flat indices of the tokens of x, (rows, tokens, n), that are no padding, if they are known."""
        if self.unpadded is None or x.ndim != 3 or x.shape[:2] != self.unpadded[0]:
            return None
        return self.unpadded[1]

    def remove(self, lane: int) -> None:
        """Take a lane out for good; the batch has one block of rows fewer from now on."""
        self.installed = tuple(other for other in self.installed if other != lane)
        self.lanes = tuple(other for other in self.lanes if other != lane) or ((BASE,) if self.installed else ())

    @contextmanager
    def masks_from(self, keys: Tensor | None) -> Iterator[None]:
        """Draw the dropout masks of one forward and backward pass from one number a lane.

        The mask of a layer's n-th call depends on its lane's key, the layer's name and n alone. Nothing is drawn on
        the host, so the pass can be replayed with other keys in the same place.

        Args:
            keys: (K,) int64, on the device, of the active lanes in order; None: the generators stay in use.
        """
        before, self.masks = self.masks, None if keys is None else (self.lanes, keys)
        self._calls.clear()
        try:
            yield
        finally:
            self.masks = before

    def recomputation(self) -> AbstractContextManager[None]:
        """Return what surrounds a part of the forward pass that is done again, from here on, in the backward pass.

        Its layers then draw the masks that they draw now.
        """
        return self._recomputed(Counter(self._calls))

    @contextmanager
    def _recomputed(self, calls: Counter[str]) -> Iterator[None]:
        before, self._again = self._again, Counter(calls)
        try:
            yield
        finally:
            self._again = before

    def mask_keys(self, layer: str, dropping: Iterable[int], device: torch.device) -> Tensor:
        """Return the keys, (K,), of the dropout masks in a call of a layer.

        Args:
            layer: its name.
            dropping: positions of the active lanes that drop anything; the others' keys are never used.
            device: where the layer computes.

        Raises:
            UserError: a checkpointed layer that one forward pass calls several times.
        """
        if self.masks is None or self.masks[0] != self.lanes:
            seeds = {position: self.seed(self.lanes[position]) for position in sorted(dropping)}
            return torch.tensor([seeds.get(position, 0) for position in range(len(self.lanes))], device=device)
        if self._again is not None:
            call, self._again[layer] = self._again[layer], self._again[layer] + 1
        elif torch._C._current_graph_task_id() != -1:  # transformers' checkpointing: the forward pass, in the backward
            if self._calls[layer] > 1:
                raise UserError(
                    f"{layer}: called several times, so its dropout cannot be computed again; use dropout=0"
                )
            call = 0
        else:
            call, self._calls[layer] = self._calls[layer], self._calls[layer] + 1
        return self.masks[1].to(device) + key(layer, call)

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
