"""AdaptedLinear: a frozen linear layer with its adapters, fused where the adapters allow it.

    y = x W^T + b + sum of the adapter's terms           W: (m, n), frozen

It replaces the module and owns its weight and bias, so the base model's state-dict keys do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lorax.adapters.adapted import AdaptedLayer, in_reference_mode
from lorax.adapters.face import LayerKind
from lorax.adapters.fused.function import Call, FusedLinear, Grouping, Masks
from lorax.adapters.kinds import kind_of
from lorax.adapters.linears.own_forward import OwnForwardKind
from lorax.adapters.linears.quantised import QuantisedKind
from lorax.adapters.low_rank import LowRankAdapter
from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.adapters.layer_adapter import LayerAdapter
    from lorax.adapters.pack_state import PackState

_transforming = torch._C._are_functorch_transforms_active
_tracing = torch._C._is_tracing


def observed() -> bool:
    """Whether a transform of `torch.func`, a forward-mode derivative or `torch.jit.trace` is under way."""
    return bool(_transforming()) or forward_ad._current_level >= 0 or bool(_tracing())


class AdaptedLinear(AdaptedLayer):
    """A frozen linear layer with the adapters of one or more lanes.

    Args:
        base: a module of a known kind (`lorax.adapters.kinds`); its parameters are taken over, not copied.
        adapters: {lane: adapter}.
        pack: the run-time state shared by all layers.
        name: the layer's name in the model, for messages.
    """

    weight: nn.Parameter
    kind: LayerKind

    def __init__(self, base: nn.Module, adapters: Mapping[int, LayerAdapter], pack: PackState, name: str):
        super().__init__(base, {}, pack, name)
        self.kind = kind_of(base)
        self._parameters.update(base._parameters)  # a quantised layer has more than weight and bias
        self._buffers.update(base._buffers)
        self._non_persistent_buffers_set |= base._non_persistent_buffers_set
        if "bias" not in self._parameters:
            self.register_parameter("bias", None)
        self.out_features, self.in_features = self.kind.shape(base)
        self._add_adapters(adapters)
        self._start: Tensor | None = None
        """W0 as stored, kept (in main memory) while the weight is folded."""
        self._unmerged: Tensor | None = None
        """The weight as it was before `merge`."""
        self._groupings: dict[Any, Grouping] = {}
        self._derived: dict[str, tuple[Any, Any]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x of shape (..., n); rows of dim 0 belong to the active lanes in equal blocks."""
        if self._needs_reference():
            return self.forward_reference(x)
        grouping = self.grouping()
        if not grouping.positions:
            return self.base(x)
        return self._fused(grouping, x) if grouping.fusible else self.forward_reference(x)

    @property
    def fuses(self) -> bool:
        """Whether a call of the layer is computed by the fused forms, where its adapters have one."""
        return self.acts_in is self and not self._needs_reference()

    def _needs_reference(self) -> bool:
        """The fused forms are for a frozen matrix in eager mode; torch.compile does better with plain operations.

        What sees plain operations only: transforms of `torch.func`, forward-mode derivatives, `torch.jit.trace`.
        """
        tensors = self._parameters
        trained_base = any(p is not None and p.requires_grad for p in tensors.values())
        asked = in_reference_mode() or self.pack.routing is not None or not self.kind.plain
        if isinstance(self.kind, QuantisedKind) and torch.is_autocast_enabled(self.weight.device.type):
            return True  # its own call takes inputs as they come, the fused products do not
        return asked or trained_base or torch.compiler.is_compiling() or observed()

    def _fused(self, grouping: Grouping, x: Tensor) -> Tensor:
        dtype = self.product_dtype(x)
        if grouping.count > 1:
            self.check_rows(x)
        x = self.pack.cast(x, dtype)
        masks = self._masks(grouping, x) if grouping.drops else None
        quantised = isinstance(self.kind, QuantisedKind)  # run by its own call, on what it stores
        weight = self.weight if quantised else cast(Tensor, self.in_dtype("weight", dtype))
        bias = cast("Tensor | None", self.bias) if quantised else self.in_dtype("bias", dtype)
        sigma = None if quantised or masks is not None else self._singular_values(grouping, x, weight)
        only, frozen = grouping.only_group, self.pack.frozen_key
        if grouping.count == 1 and only is not None and masks is None and not isinstance(self.kind, OwnForwardKind):
            y = only.whole(x, self.kind.matrix(weight), bias, frozen, sigma is not None)
            if y is not None:
                return y
        own = self.kind.own_call(self) if isinstance(self.kind, OwnForwardKind) else None
        call = Call(grouping, self.kind.transposed, masks, frozen, self.pack.unpadded_tokens(x), sigma, own)
        if quantised:
            call.dequantised = self.frozen
        return FusedLinear.apply(x, weight, bias, call, *grouping.leaves())

    def _masks(self, grouping: Grouping, x: Tensor) -> Masks | None:
        """Return what this call's dropout masks are drawn from; None where no lane drops now."""
        places = grouping.positions.items()
        dropping = frozenset(position for position, adapter in places if adapter.q and adapter.training)
        return Masks(self.pack.mask_keys(self.name, dropping, x.device), dropping) if dropping else None

    def product_dtype(self, x: Tensor) -> torch.dtype:
        """Return the dtype in which the layer's products run: autocast's where that is on, else x's own."""
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device) and torch.float64 not in (x.dtype, self.weight.dtype):
            return torch.get_autocast_dtype(device)
        return x.dtype

    def _singular_values(self, grouping: Grouping, x: Tensor, weight: Tensor) -> Tensor | None:
        """Return the weight's singular values where its singular vectors are the factors of every lane."""
        only = grouping.only_group
        if only is None or not (x.requires_grad and torch.is_grad_enabled()) or x.dtype != weight.dtype:
            return None
        name = f"singular values {id(only.basis('B'))} {id(only.basis('A'))}"
        with torch.no_grad():
            return self.remember(name, weight, lambda stored: only.singular_values(self.kind.matrix(stored)))

    def grouping(self) -> Grouping:
        """Return how the active lanes are computed together; kept until they change."""
        stacks = self.pack.stacks
        key: Any = (self.pack.lanes, frozenset(self.pack.off))
        kept, key = (self._groupings, key) if stacks is None else (stacks.groupings, (self.name, *key))
        if key not in kept:
            kept[key] = Grouping([self.adapter(lane) for lane in self.pack.lanes], stacks, self.name)
        return kept[key]

    def in_dtype(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """Return the frozen weight or bias in `dtype`; the cast is kept while the tensor stays the same."""
        tensor = cast("Tensor | None", getattr(self, name))
        if tensor is None or tensor.dtype == dtype:
            return tensor
        return self.remember(f"{name} {dtype}", tensor, lambda stored: stored.detach().to(dtype))

    def remember(self, name: str, tensor: Tensor, make: Callable[[Tensor], Any]) -> Any:
        """Return make(tensor), made once for as long as the tensor stays the same.

        Args:
            name: of what is made.
            tensor: what it is made from.
            make: makes it.
        """
        key = (tensor.data_ptr(), tensor._version, tensor.dtype)
        if name not in self._derived or self._derived[name][0] != key:
            with torch.inference_mode(False):  # what is made in inference mode could not serve training later
                self._derived[name] = (key, make(tensor))
        return self._derived[name][1]

    @property
    def changed(self) -> bool:
        """Whether an adapter is merged or folded into the weight now."""
        return self._start is not None or self._unmerged is not None

    def base(self, x: Tensor) -> Tensor:
        """Return x W^T + b by the same call as the replaced module."""
        return self.kind.forward(self, x)

    def frozen_weight(self) -> Callable[[], Tensor]:
        """Return a function that gives the frozen weight, (m, n)."""
        return self.frozen

    def rows_of(self, x: Tensor) -> Tensor:
        """Return the input as rows, (..., n)."""
        return self.kind.inputs(self, x)

    def rows_out(self, y: Tensor) -> Tensor:
        """Return the output as rows, (..., m)."""
        return self.kind.rows(y)

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """Give rows, (..., m), the shape of an output."""
        return self.kind.outputs(rows, like)

    def start(self) -> Tensor:
        """Return W0, (m, n), as a view of what is stored."""
        kept = self._start if self._start is not None else self._unmerged
        return self.kind.weight(self) if kept is None else self.kind.matrix(kept)

    def frozen(self) -> Tensor:
        """Return the weight that the adapters add to, (m, n): W0, or W_fz as rounded when folded."""
        return self.kind.weight(self) if self._unmerged is None else self.kind.matrix(self._unmerged)

    def fold(self, adapter: LayerAdapter) -> None:
        """Write W_fz = W0 - eta B0 M0 A0 into the weight."""
        shift = adapter.shift()
        if shift is not None:
            self._start = self._write(self.frozen().to(shift.dtype) - shift).to("cpu")

    def merge(self, adapter: LayerAdapter) -> None:
        """Write W' into the weight, in its own dtype.

        Raises:
            UserError: the adapter is no change of the weight.
        """
        folded = isinstance(adapter, LowRankAdapter) and not adapter.carries
        factors = adapter.factors() if folded else None
        change = factors.update() if factors is not None else adapter.delta(self.frozen)
        if change is None:
            raise UserError(f"cannot merge {self.name}: its adapter is no change of the weight")
        self._unmerged = self._write(self.frozen().to(change.dtype) + change)

    def unmerge(self) -> None:
        """Put back the weight from before `merge`, bit for bit."""
        self._put(self._unmerged)
        self._unmerged = None

    def restore_weight(self) -> None:
        """Put W0 back, bit for bit."""
        self.unmerge()
        self._put(self._start)
        self._start = None

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Compute with W0 for a while."""
        now, start = self.weight.data, self.kind.store(self.start())
        self.weight.data = start.to(device=now.device, dtype=now.dtype)
        try:
            yield
        finally:
            self.weight.data = now

    def forget(self) -> None:
        """Drop what was derived from weights or adapters that may have changed or been removed."""
        self._groupings.clear()
        self._derived.clear()

    def restore(self, original: nn.Module) -> nn.Module:
        """Return the replaced module with W0 in it, bit for bit."""
        self.restore_weight()
        return self.current(original)

    def current(self, original: nn.Module) -> nn.Module:
        """Return the replaced module, computing with weight and bias as they are now."""
        original._parameters.update({name: self._parameters[name] for name in original._parameters})
        original._buffers.update({name: self._buffers[name] for name in original._buffers})
        return super().current(original)

    def refuse_write(self, verb: str) -> None:
        """Refuse to write into a weight that cannot be written.

        Args:
            verb: "fold into" or "merge".

        Raises:
            UserError: names the layer, how its weight is held, and what to do.
        """
        if self.kind.writable:
            return
        held = (
            f"quantised ({self.kind.label})"
            if isinstance(self.kind, QuantisedKind)
            else f"held as {type(self.kind).__name__}"
        )
        way = "use recenter='carry', which is exact" if verb.startswith("fold") else "keep the adapter beside it"
        raise UserError(f"cannot {verb} {self.name}: its weight is {held} and cannot be written; {way}")

    def _write(self, matrix: Tensor) -> Tensor:
        """Replace the weight by an (m, n) matrix and return the old one, as stored."""
        old = self.weight.data
        self.weight.data = self.kind.store(matrix).to(old.dtype).contiguous()
        return old

    def _put(self, stored: Tensor | None) -> None:
        if stored is not None:
            self.weight.data = stored.to(dtype=self.weight.dtype, device=self.weight.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLinear:
        """Move like any module, but keep tensors that lanes share in one place."""
        owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for adapter in self.lanes.values():
            for name, tensor in adapter._buffers.items():
                owners.setdefault(id(tensor), []).append((adapter, name))
        super()._apply(fn, recurse)
        self.forget()
        for (first, name), *others in owners.values():
            for adapter, other in others:
                adapter._buffers[other] = first._buffers[name]
        return self

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
