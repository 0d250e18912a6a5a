"""Lane: the tensors of one method at one layer, and its equation in plain operations.

    not recentred:  eta * B M A x                                     B, M, A trained or frozen
    carried:        eta * [dB M A + B0 dM A + B0 M0 dA] x             B = B0 + dB, M = M0 + dM, A = A0 + dA
    folded:         eta * B M A x                                     on a weight that lost eta B0 M0 A0

A recentred method trains the differences dB, dM, dA, which start at zero: the same Adam
trajectory as training B, M, A, exact at step 0 in any dtype, and with no cancellation after
it (the difference of the two full products would be noise in bfloat16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters import core
from lorax.adapters.dropout import draw, kept, quantise, scale
from lorax.adapters.factors import Factors

_NAMES = ("B", "M", "A")


class Lane(nn.Module):
    """One method's adapter at one layer.

    Args:
        factors: the data at step 0, already in the training dtype and on the device.
        fold: the base weight already lost eta B0 M0 A0 (only asked of recentred factors).
        dropout: probability on the adapter's input, quantised to 1/256.
        share: how to store the tensors named in `factors.shared`: a function that returns the one
            copy for all lanes. None stores them as they are.
    """

    def __init__(
        self,
        factors: Factors,
        *,
        fold: bool = False,
        dropout: float = 0.0,
        share: Callable[[str, Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.eta = float(factors.eta)
        self.trainable = factors.trainable
        self.shifts_base = factors.shifts_base
        self.carries = factors.shifts_base and not fold
        self.shared = factors.shared
        self.report = dict(factors.report)
        self.q = quantise(dropout)
        self.header = core.describe(factors.M)
        if isinstance(factors.M, core.Sparse):
            self.register_buffer("rows", factors.M.rows.clone())
            self.register_buffer("cols", factors.M.cols.clone())
        for name, tensor in zip(_NAMES, (factors.B, core.values(factors.M), factors.A), strict=True):
            if tensor is None:
                continue
            tensor = tensor.detach()
            own = share(name, tensor) if share and name in factors.shared else tensor.clone().contiguous()
            self._register(name, own)

    def _register(self, name: str, tensor: Tensor) -> None:
        trained = name in self.trainable
        if self.shifts_base:
            self.register_buffer(f"{name}0", tensor)
            if trained:
                self.register_parameter(f"d{name}", nn.Parameter(torch.zeros_like(tensor)))
        elif trained:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    @property
    def rank(self) -> int:
        """Rank bound of the method's own product B M A."""
        return min(self.start("B").shape[1], self.start("A").shape[0])

    def start(self, name: str) -> Tensor | None:
        """Return B0, M0 or A0 of recentred factors; otherwise the current B, M or A."""
        return getattr(self, f"{name}0" if self.shifts_base else name, None)

    def change(self, name: str) -> Tensor | None:
        """Return dB, dM or dA where recentred factors train it, else None."""
        return getattr(self, f"d{name}", None) if self.shifts_base else None

    def current(self, name: str) -> Tensor | None:
        """Return B, M or A as they are now (M: its numbers; None for the identity)."""
        start, change = self.start(name), self.change(name)
        return start if change is None else start + change

    def core(self, numbers: Tensor | None) -> core.Core:
        """Return the core that holds these numbers."""
        tensors = {"M": numbers, "rows": getattr(self, "rows", None), "cols": getattr(self, "cols", None)}
        return core.restore(self.header, tensors)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained tensors by name, in the order B, M, A."""
        prefix = "d" if self.shifts_base else ""
        return {prefix + x: getattr(self, prefix + x) for x in _NAMES if x in self.trainable}

    def terms(self) -> list[tuple[Tensor, core.Core, Tensor]]:
        """Return the products (B, M, A) whose sum, times eta, the layer adds to the base output."""
        B, M, A = (self.current(name) for name in _NAMES)
        if not self.carries:
            return [(B, self.core(M), A)]
        products = []
        if (dB := self.change("B")) is not None:
            products.append((dB, self.core(M), A))
        if (dM := self.change("M")) is not None:
            products.append((self.start("B"), self.core(dM), A))
        if (dA := self.change("A")) is not None:
            products.append((self.start("B"), self.core(self.start("M")), dA))
        return products

    def output(self, x: Tensor, dtype: torch.dtype, seed: int | None = None, width: int | None = None) -> Tensor:
        """Return the adapter's output for x of shape (..., n), in `dtype`: the readable form.

        Args:
            x: input.
            dtype: of the products; differences are formed before the cast.
            seed: draws the dropout mask; None means no dropout.
            width: tokens that the mask is drawn for, if the rows are padded beyond their own.
        """
        x = x.to(dtype)
        if seed is not None and self.q:
            drawn = draw(tuple(x.shape), seed, x.device, width)
            x = x * kept(drawn, self.q, dtype) * scale(self.q)
        total = None
        for B, M, A in self.terms():
            y = core.apply(M, x @ A.to(dtype).mT) @ B.to(dtype).mT
            total = y if total is None else total + y
        return self.eta * total

    def delta(self) -> Tensor:
        """Return W' - W0 of exact arithmetic, (m, n), by telescoped products in the factors' precision."""
        carried, self.carries = self.carries, self.shifts_base
        try:
            total = sum(core.after(B, M) @ A for B, M, A in self.terms())
        finally:
            self.carries = carried
        return self.eta * total

    def shift(self) -> Tensor | None:
        """Return eta B0 M0 A0, (m, n), of recentred factors, else None."""
        if not self.shifts_base:
            return None
        return self.eta * (core.after(self.start("B"), self.core(self.start("M"))) @ self.start("A"))

    def factors(self) -> Factors:
        """Return the current values as data."""
        M = self.core(self.current("M"))
        return Factors(
            self.current("B").detach(),
            core.with_values(M, None if isinstance(M, core.Identity) else M.values.detach()),
            self.current("A").detach(),
            self.eta,
            self.trainable,
            self.shifts_base,
            dict(self.report),
            self.shared,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Lane:
        """Follow the model to another device, never to a coarser dtype."""
        return super()._apply(lambda tensor: _moved(tensor, fn), recurse)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        m, n = self.start("B").shape[0], self.start("A").shape[1]
        return f"m={m}, n={n}, rank={self.rank}, core={self.header['kind']}, eta={self.eta:g}, q={self.q}/256"


def _moved(tensor: Tensor, fn: Callable[[Tensor], Any]) -> Tensor:
    new = fn(tensor)
    return tensor.to(new.device) if new.dtype != tensor.dtype else new
