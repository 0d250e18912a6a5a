"""AdaptedLinear: the one layer type that turns factors into a trainable module.

    y = x W^T + b + sum of the lane's terms           W: (m, n), frozen

It replaces a linear module and owns its weight and bias, so the base model's state-dict keys
do not change. Several lanes share the weight: rows of the batch belong to lanes in equal blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lorax.adapters.fused import function
from lorax.adapters.layer_adapter import Lane
from lorax.adapters.pack_state import Pack
from lorax.errors import UserError

_readable = False


@contextmanager
def readable(on: bool = True) -> Iterator[None]:
    """Run adapted layers in their readable form, one lane after the other in plain operations.

    It is the reference that the fast path is held equal to, and it can be differentiated twice.
    """
    global _readable
    before, _readable = _readable, on
    try:
        yield
    finally:
        _readable = before


class AdaptedLinear(nn.Module):
    """A frozen linear layer with the adapters of one or more lanes.

    Args:
        base: `nn.Linear` or transformers' `Conv1D`; its parameters are taken over, not copied.
        lanes: {lane number: adapter}.
        pack: the run-time state shared by all layers.
        name: the layer's name in the model, for messages.
    """

    def __init__(self, base: nn.Module, lanes: dict[int, Lane], pack: Pack, name: str):
        super().__init__()
        self.transposed = is_conv1d(base)
        """The weight is stored (n, m), as in transformers' Conv1D."""
        self.weight = base.weight
        self.register_parameter("bias", getattr(base, "bias", None))
        self.out_features, self.in_features = effective(base).shape
        self.lanes = nn.ModuleDict({str(number): lane for number, lane in lanes.items()})
        self.pack = pack
        self.name = name
        self._start: Tensor | None = None
        """W0 as stored, kept (in main memory) while the weight is folded."""
        self._held: Tensor | None = None
        """The weight as it was before `merge`."""
        self._plans: dict[Any, function.Plan] = {}
        self._made: dict[str, tuple[Any, Any]] = {}
        self.training = base.training
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
                      "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"):  # fmt: skip
            setattr(self, hooks, getattr(base, hooks))

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x of shape (..., n); rows of dim 0 belong to the active lanes in equal blocks."""
        if self._needs_readable():
            return self.forward_readable(x)
        plan = self.plan()
        if not plan.positions:
            return self.base(x)
        return function.forward(self, plan, x) if plan.applies else self.forward_readable(x)

    def _needs_readable(self) -> bool:
        """The fast form is for a frozen base in eager mode; torch.compile does better with plain operations."""
        own = self._parameters
        trained_base = own["weight"].requires_grad or (own["bias"] is not None and own["bias"].requires_grad)
        return _readable or trained_base or torch.compiler.is_compiling()

    def plan(self) -> function.Plan:
        """Return how the active lanes are grouped; kept until they change."""
        key = (self.pack.lanes, frozenset(self.pack.off))
        if key not in self._plans:
            self._plans[key] = function.Plan([self.lane(number) for number in self.pack.lanes])
        return self._plans[key]

    def cast(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """Return the frozen weight or bias in `dtype`; the cast is kept while the tensor stays the same."""
        tensor = getattr(self, name)
        if tensor is None or tensor.dtype == dtype:
            return tensor
        return self.remember(f"{name} {dtype}", tensor, lambda own: own.detach().to(dtype))

    def remember(self, name: str, tensor: Tensor, make: Callable[[Tensor], Any]) -> Any:
        """Return make(tensor), made once for as long as the tensor stays the same."""
        key = (tensor.data_ptr(), tensor._version, tensor.dtype)
        if name not in self._made or self._made[name][0] != key:
            with torch.inference_mode(False):  # what is made in inference mode could not serve training later
                self._made[name] = (key, make(tensor))
        return self._made[name][1]

    def forward_readable(self, x: Tensor) -> Tensor:
        """The equation in plain operations, lane after lane."""
        y = self.base(x)
        blocks = []
        for number, rows, out in zip(self.pack.lanes, self.split(x), self.split(y), strict=True):
            lane = self.lane(number)
            if lane is not None:
                width = self.pack.width(number, tuple(rows.shape))
                out = out + lane.output(rows, y.dtype, self.mask_seed(number, lane), width)
            blocks.append(out)
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def base(self, x: Tensor) -> Tensor:
        """Return x W^T + b by the very call of the replaced module."""
        if not self.transposed:
            return F.linear(x, self.weight, self.bias)
        y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], self.out_features)

    def lane(self, number: int) -> Lane | None:
        """Return a lane's adapter here, or None where it has none or is switched off."""
        key = str(number)
        return self.lanes[key] if key in self.lanes and number not in self.pack.off else None

    def mask_seed(self, number: int, lane: Lane) -> int | None:
        """Draw the seed of this call's dropout mask, or None where nothing is dropped."""
        return self.pack.seed(number) if lane.q and lane.training else None

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the row blocks of the active lanes.

        Raises:
            UserError: the rows do not divide.
        """
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

    def start(self) -> Tensor:
        """Return W0, (m, n), as a view of what is stored."""
        kept = self._start if self._start is not None else self._held
        return self._turn(self.weight.detach() if kept is None else kept)

    def frozen(self) -> Tensor:
        """Return the weight that the adapters add to, (m, n): W0, or W_fz as rounded when folded."""
        return self._turn(self.weight.detach() if self._held is None else self._held)

    def fold(self, lane: Lane) -> None:
        """Write W_fz = W0 - eta B0 M0 A0 into the weight."""
        shift = lane.shift()
        self._start = self._write(self.frozen().to(shift.dtype) - shift).to("cpu")

    def merge(self, lane: Lane) -> None:
        """Write W' into the weight, in its own dtype."""
        change = lane.factors().update() if not lane.carries else lane.delta()
        self._held = self._write(self.frozen().to(change.dtype) + change)

    def unmerge(self) -> None:
        """Put back the weight from before `merge`, bit for bit."""
        self._held = self._put(self._held)

    def restore_weight(self) -> None:
        """Put W0 back, bit for bit."""
        self.unmerge()
        self._start = self._put(self._start)

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Compute with W0 for a while."""
        now, start = self.weight.data, self._turn(self.start())
        self.weight.data = start.to(device=now.device, dtype=now.dtype)
        try:
            yield
        finally:
            self.weight.data = now

    def forget(self) -> None:
        """Drop what was derived from weights or lanes that may have gone."""
        self._plans.clear()
        self._made.clear()

    def _turn(self, matrix: Tensor) -> Tensor:
        """Go between (m, n) and the way the weight is stored."""
        return matrix.mT if self.transposed else matrix

    def _write(self, matrix: Tensor) -> Tensor:
        """Replace the weight by an (m, n) matrix and return the old one."""
        old = self.weight.data
        self.weight.data = self._turn(matrix).to(old.dtype).contiguous()
        return old

    def _put(self, stored: Tensor | None) -> None:
        if stored is not None:
            self.weight.data = stored.to(dtype=self.weight.dtype, device=self.weight.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLinear:
        """Move like any module, but keep tensors that lanes share in one place."""
        owners: dict[int, list[tuple[Lane, str]]] = {}
        for lane in self.lanes.values():
            for name, tensor in lane._buffers.items():
                owners.setdefault(id(tensor), []).append((lane, name))
        super()._apply(fn, recurse)
        self.forget()
        for (first, name), *others in owners.values():
            for lane, other in others:
                lane._buffers[other] = first._buffers[name]
        return self

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D (weight stored transposed), without importing transformers."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes x W^T + b with its own weight: nn.Linear's forward, or Conv1D."""
    if isinstance(module, AdaptedLinear):
        return False
    return is_conv1d(module) or (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward)


def effective(module: nn.Module) -> Tensor:
    """Return a linear module's weight as (m, n), whatever way it is stored."""
    return module.weight.detach().mT if is_conv1d(module) else module.weight.detach()
