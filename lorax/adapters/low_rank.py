"""LowRankAdapter: factors as a trainable module, and its equation in plain operations.

    not recentred:  eta * B M A x                                     B, M, A trained or frozen
    carried:        eta * [dB M A + B0 dM A + B0 M0 dA] x             B = B0 + dB, M = M0 + dM, A = A0 + dA
    folded:         eta * B M A x                                     on a weight that lost eta B0 M0 A0

A recentred method trains the differences dB, dM, dA, which start at zero: the same Adam
trajectory as training B, M, A, exact at step 0 in any dtype, and with no cancellation after
it (the difference of the two full products would be noise in bfloat16).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lorax.adapters import core
from lorax.adapters.core import Core
from lorax.adapters.layer_adapter import LayerAdapter

if TYPE_CHECKING:
    from lorax.adapters.face import Share
    from lorax.adapters.factors import Factors

_NAMES = ("B", "M", "A")


class LowRankAdapter(LayerAdapter):
    """One run's low-rank adapter at one layer.

    Args:
        factors: the data at step 0, already in the training dtype and on the device.
        fold: the base weight already lost eta B0 M0 A0 (only asked of recentred factors).
        dropout: probability on the adapter's input, quantised to 1/256.
        share: how to store the tensors named in `factors.shared`: a function that returns the one
            copy for all lanes. None stores them as they are.
    """

    eta: float

    def __init__(
        self,
        factors: Factors,
        *,
        fold: bool = False,
        dropout: float = 0.0,
        share: Share | None = None,
    ):
        super().__init__(dropout)
        self.eta = float(factors.eta)
        self.trainable = factors.trainable
        self.shifts_base = factors.shifts_base
        self.carries = factors.shifts_base and not fold
        """Whether the forward adds telescoped differences to W0, not a product to W_fz."""
        self.shared = factors.shared
        self.report = dict(factors.report)
        self.header = core.describe(factors.M)
        empty = torch.empty(0)
        self._without_tensors = replace(factors, B=empty, M=core.Identity(), A=empty)
        if isinstance(factors.M, core.Sparse):
            self.register_buffer("rows", factors.M.rows.clone())
            self.register_buffer("cols", factors.M.cols.clone())
        for name, tensor in zip(_NAMES, (factors.B, core.values(factors.M), factors.A), strict=True):
            if tensor is None:
                continue
            tensor = tensor.detach()
            shares = share is not None and name in factors.shared
            self._register(name, share(name, tensor) if share and shares else tensor.clone().contiguous())

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
    def fusible(self) -> bool:  # type: ignore[override]  # a constant of other adapters
        """Whether the fused forms cover these factors: all but carried ones with a core."""
        return not self.carries or self.header["kind"] == "identity"

    @property
    def rank(self) -> int:
        """Rank bound of the method's own product B M A."""
        return min(self.start("B").shape[1], self.start("A").shape[0])

    def start(self, name: str) -> Tensor:
        """Return B0, M0 or A0 of recentred factors; otherwise the current B, M or A. None for an identity core."""
        return cast(Tensor, getattr(self, f"{name}0" if self.shifts_base else name, None))

    def change(self, name: str) -> Tensor | None:
        """Return dB, dM or dA where recentred factors train it, else None."""
        return getattr(self, f"d{name}", None) if self.shifts_base else None

    def current(self, name: str) -> Tensor:
        """Return B, M or A as they are now (M: its numbers; None for the identity)."""
        start, change = self.start(name), self.change(name)
        return start if change is None else start + change

    def core(self, numbers: Tensor | None) -> Core:
        """Return the core that holds these numbers."""
        tensors = {"M": numbers, "rows": getattr(self, "rows", None), "cols": getattr(self, "cols", None)}
        return core.restore(self.header, tensors)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained tensors by name, in the order B, M, A."""
        prefix = "d" if self.shifts_base else ""
        return {prefix + x: getattr(self, prefix + x) for x in _NAMES if x in self.trainable}

    def terms(self, carried: bool | None = None) -> list[tuple[Tensor, Core, Tensor]]:
        """Return the products (B, M, A) whose sum, times eta, is added to the base.

        Args:
            carried: the telescoped form, whose sum is W' - W0; None: the form of the forward.
        """
        B, M, A = (self.current(name) for name in _NAMES)
        if not (self.carries if carried is None else carried):
            return [(B, self.core(M), A)]
        products = []
        if (dB := self.change("B")) is not None:
            products.append((dB, self.core(M), A))
        if (dM := self.change("M")) is not None:
            products.append((self.start("B"), self.core(dM), A))
        if (dA := self.change("A")) is not None:
            products.append((self.start("B"), self.core(self.start("M")), dA))
        return products

    def output(
        self, x: Tensor, base: Tensor, weight: Callable[[], Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return base + eta * (sum of the terms applied to x), in the dtype of `base`.

        Differences are formed before the cast to that dtype.
        """
        x = x.to(base.dtype)
        if mask is not None:
            x = x * mask
        first, *others = (core.apply(M, x @ A.to(x.dtype).mT) @ B.to(x.dtype).mT for B, M, A in self.terms())
        return base + self.eta * sum(others, first)

    def delta(self, weight: Callable[[], Tensor] | None = None) -> Tensor:
        """Return W' - W0 of exact arithmetic, (m, n), by telescoped products in the factors' precision."""
        first, *others = (core.left_multiply(B, M) @ A for B, M, A in self.terms(carried=self.shifts_base))
        return self.eta * sum(others, first)

    def shift(self) -> Tensor | None:
        """Return eta B0 M0 A0, (m, n), of recentred factors, else None."""
        if not self.shifts_base:
            return None
        return self.eta * (core.left_multiply(self.start("B"), self.core(self.start("M"))) @ self.start("A"))

    def factors(self) -> Factors:
        """Return the current values as data."""
        M = self.core(self.current("M"))
        M = core.with_values(M, None if isinstance(M, core.Identity) else M.values.detach())
        return replace(
            self._without_tensors,
            B=self.current("B").detach(),
            M=M,
            A=self.current("A").detach(),
            report=dict(self.report),
        )

    def describe(self) -> dict[str, Any]:
        """Return what `Factors.restore` needs beside the tensors."""
        return {
            "eta": self.eta,
            "trainable": sorted(self.trainable),
            "shared": sorted(self.shared),
            "shifts_base": self.shifts_base,
            "core": self.header,
            "report": self.report,
        }

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        m, n = self.start("B").shape[0], self.start("A").shape[1]
        return f"m={m}, n={n}, rank={self.rank}, core={self.header['kind']}, eta={self.eta:g}, q={self.q}/256"
