"""AdaptedLayer: a frozen module with the adapters of one or more lanes, in plain operations.

    y_k = adapter_k(x_k, base(x_k))        for the rows of each lane k

Rows of dim 0 belong to the active lanes in equal blocks, in order; or each row names its lane
(`PackState.routed`). Tests compare the fused forms with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lorax.adapters.dropout import draw, kept, scale
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.face import LayerKind
    from lorax.adapters.layer_adapter import LayerAdapter
    from lorax.adapters.pack_state import PackState
    from lorax.adapters.routed.routing import Routing

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_is_full_backward_hook",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_reference_mode = False


@contextmanager
def reference_mode(on: bool = True) -> Iterator[None]:
    """Run adapted layers in plain operations, one lane after the other.

    Tests compare the fused forms with it. It can be differentiated twice.
    """
    global _reference_mode
    before, _reference_mode = _reference_mode, on
    try:
        yield
    finally:
        _reference_mode = before


def in_reference_mode() -> bool:
    """Whether `reference_mode` is on."""
    return _reference_mode


class AdaptedLayer(nn.Module):
    """A frozen module and its adapters; subclasses say what the module computes.

    Args:
        base: the module in whose place this stands; its hooks are taken over.
        adapters: {lane: adapter}.
        pack: the run-time state shared by all layers.
        name: the layer's name in the model, for messages.
    """

    lanes: nn.ModuleDict
    kind: LayerKind | None = None
    """How the module holds its weight; None where it has none of its own."""

    def __init__(self, base: nn.Module, adapters: Mapping[int, LayerAdapter], pack: PackState, name: str):
        super().__init__()
        self.pack = pack
        self.name = name
        self.training = base.training
        for hooks in _HOOKS:
            setattr(self, hooks, getattr(base, hooks))
        self._add_adapters(adapters)

    def _add_adapters(self, adapters: Mapping[int, LayerAdapter]) -> None:
        """Register the adapters; their keys in the model are <layer>.lanes.<lane>.<tensor>."""
        self.lanes = nn.ModuleDict({str(lane): adapter for lane, adapter in adapters.items()})

    @property
    def acts_in(self) -> nn.Module:
        """The module whose call makes the adapters act."""
        return self

    @property
    def changed(self) -> bool:
        """Whether an adapter is written into the frozen weight now."""
        return False

    def base(self, x: Tensor) -> Tensor:
        """Return the frozen module's own output."""
        raise NotImplementedError(f"{type(self).__name__}.base")

    def frozen_weight(self) -> Callable[[], Tensor] | None:
        """Return a function that gives the frozen weight, (m, n), or None where the module has none."""
        return None

    def rows_of(self, x: Tensor) -> Tensor:
        """Return the input as rows, (..., n), that adapters are applied to."""
        return x

    def rows_out(self, y: Tensor) -> Tensor:
        """Return the module's output as rows, (..., m)."""
        return y

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """Give rows, (..., m), the shape of the module's output."""
        return rows

    def forward_reference(self, x: Tensor) -> Tensor:
        """Return the adapted output, lane after lane, in plain operations."""
        y = self.base(x)
        rows, out = self.rows_of(x), self.rows_out(y)
        if self.pack.routing is not None:
            return self.from_rows(self._routed(rows, out, self.pack.routing), y)
        keys, blocks = self._mask_keys(rows.device), []
        for lane, x_k, y_k in zip(self.pack.lanes, self.split(rows), self.split(out), strict=True):
            adapter = self.adapter(lane)
            blocks.append(y_k if adapter is None else self._adapted(adapter, keys.get(lane), x_k, y_k))
        return self.from_rows(blocks[0] if len(blocks) == 1 else torch.cat(blocks), y)

    def _routed(self, x: Tensor, y: Tensor, routing: Routing) -> Tensor:
        """Return the output where each row uses the adapter of its lane, and the base's alone at -1."""
        if len(routing) != len(x):
            raise UserError(f"{self.name}: {len(x)} rows, but {len(routing)} are routed")
        if self.changed:
            raise UserError(f"{self.name}: rows cannot be routed past a merged or folded weight")
        if unknown := sorted(routing.rows.keys() - {-1, *self.pack.lanes}):
            raise UserError(f"{self.name}: rows are routed to lanes {unknown}, which are not active")
        adapters = {lane: adapter for lane in routing.rows if (adapter := self.adapter(lane)) is not None}
        if not adapters:
            return y
        gathered = routing.gathered(self.name, adapters)
        if gathered is not None:
            return gathered.output(x, y)
        where, keys = {lane: routing.rows_of(lane, x.device) for lane in adapters}, self._mask_keys(x.device)
        out = [
            self._adapted(adapter, keys.get(lane), x[where[lane]], y[where[lane]]) for lane, adapter in adapters.items()
        ]
        return y.index_copy(0, torch.cat(list(where.values())), torch.cat(out))

    def _mask_keys(self, device: torch.device) -> dict[int, Tensor]:
        """Return {lane: (1,) what its dropout mask is drawn from} of the active lanes that drop anything now."""
        adapters = [self.adapter(lane) for lane in self.pack.lanes]
        dropping = frozenset(k for k, each in enumerate(adapters) if each is not None and each.q and each.training)
        if not dropping:
            return {}
        keys = self.pack.mask_keys(self.name, dropping, device)
        return {self.pack.lanes[k]: keys[k : k + 1] for k in dropping}

    def _adapted(self, adapter: LayerAdapter, key: Tensor | None, x: Tensor, base: Tensor) -> Tensor:
        mask = None
        if key is not None:
            dropped = base if adapter.drops_output else x
            shape = tuple(dropped.shape) if adapter.masks == 1 else (adapter.masks, *dropped.shape)
            mask = kept(draw(shape, key)[0], adapter.q, base.dtype) * scale(adapter.q)
        return adapter.output(x, base, self.frozen_weight(), mask)

    def all_adapters(self) -> dict[int, LayerAdapter]:
        """Return {lane: adapter}, switched on or not."""
        return {int(lane): cast("LayerAdapter", adapter) for lane, adapter in self.lanes.items()}

    def adapter(self, lane: int) -> LayerAdapter | None:
        """Return a lane's adapter here, or None where it has none or is switched off."""
        key = str(lane)
        return cast("LayerAdapter", self.lanes[key]) if key in self.lanes and lane not in self.pack.off else None

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the row blocks of the active lanes.

        Raises:
            UserError: the rows do not divide.
        """
        if len(self.pack.lanes) == 1:
            return (x,)  # no view of several: those must not be changed in place
        self.check_rows(x)
        return x.chunk(len(self.pack.lanes))

    def check_rows(self, x: Tensor) -> None:
        """Refuse a batch that is no equal blocks of rows.

        Raises:
            UserError: the rows do not divide.
        """
        count = len(self.pack.lanes)
        if x.shape[0] % count:
            raise UserError(f"{self.name}: {x.shape[0]} rows do not divide into {count} lanes")

    def forget(self) -> None:
        """Drop what was derived from weights or adapters that may have changed or been removed."""

    def restore(self, original: nn.Module) -> nn.Module:
        """Return the replaced module, with what it computes with as it was before."""
        return self._handed_back(original)

    def current(self, original: nn.Module) -> nn.Module:
        """Return the replaced module, computing with the tensors as they are now."""
        return self._handed_back(original)

    def _handed_back(self, original: nn.Module) -> nn.Module:
        original.training = self.training
        original._is_full_backward_hook = self._is_full_backward_hook  # the hooks themselves are shared
        return original
