"""Factors: what an initialiser returns for one layer, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorax.adapters import core
from lorax.adapters.core import Core, Identity
from lorax.adapters.face import Share
from lorax.adapters.kinds import find_kind
from lorax.adapters.low_rank import LowRankAdapter
from lorax.errors import UserError


@dataclass(frozen=True)
class Factors:
    """One layer's adapter: W' = W_fz + eta * B M A, with W_fz = W0 - eta * B0 M0 A0 if `shifts_base`.

    The tensors are the values at step 0; what trains is named in `trainable`.
    """

    B: Tensor
    """(m, r_out), float32 (float64 on a float64 base)."""
    M: Core
    """The core between them, (r_out, r_in)."""
    A: Tensor
    """(r_in, n), dtype of B."""
    eta: float
    """The scale of the update, never trained."""
    trainable: frozenset[str]
    """A subset of {"A", "B", "M"}."""
    shifts_base: bool = False
    """Recentred: the frozen weight loses the product of step 0, so that the step-0 output is the base's."""
    report: dict[str, float] = field(default_factory=dict)
    """Facts about this layer for the record (captured energy, zeta, ...)."""
    shared: frozenset[str] = frozenset()
    """Which of B, A are frozen and the same for every lane on this layer, so that one copy serves all."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the layer."""
        return (self.B.shape[0], self.A.shape[1])

    @property
    def rank(self) -> int:
        """The rank bound of the update, min(r_out, r_in)."""
        return min(self.B.shape[1], self.A.shape[0])

    def update(self) -> Tensor:
        """Return eta * B M A, (m, n), in the dtype of B."""
        return self.eta * (core.left_multiply(self.B, self.M) @ self.A)

    def count_trainable(self) -> int:
        """Return how many numbers train."""
        sizes = {"A": self.A.numel(), "B": self.B.numel()}
        numbers = core.values(self.M)
        sizes["M"] = 0 if numbers is None else numbers.numel()
        return sum(sizes[name] for name in self.trainable)

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Factors:
        """Return the same factors in another dtype and place; tensors already there are not copied."""
        numbers = core.values(self.M)
        M = self.M if numbers is None else core.with_values(self.M, numbers.to(device=device, dtype=dtype))
        if isinstance(M, core.Sparse):
            M = core.Sparse(M.rows.to(device), M.cols.to(device), M.values, M.shape)
        return replace(self, B=self.B.to(device=device, dtype=dtype), A=self.A.to(device=device, dtype=dtype), M=M)

    def build(self, *, fold: bool = False, dropout: float = 0.0, share: Share | None = None) -> LowRankAdapter:
        """Return these factors as a trainable module; see `LowRankAdapter`."""
        return LowRankAdapter(self, fold=fold, dropout=dropout, share=share)

    @classmethod
    def restore(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Factors:
        """Build the factors of step 0 from `LowRankAdapter.describe` and the tensors that were saved."""
        suffix = "0" if described["shifts_base"] else ""
        pattern: dict[str, Tensor | None] = {key: tensors[key] for key in ("rows", "cols") if key in tensors}
        return cls(
            tensors[f"B{suffix}"],
            core.restore(described["core"], {"M": tensors.get(f"M{suffix}")} | pattern),
            tensors[f"A{suffix}"],
            described["eta"],
            frozenset(described["trainable"]),
            described["shifts_base"],
            described["report"],
            frozenset(described["shared"]),
        )

    def check_module(self, name: str, module: nn.Module) -> None:
        """Check that the factors fit the weight of a module.

        Raises:
            UserError: the module has no (m, n) weight, or one that does not fit.
        """
        kind = find_kind(module)
        if kind is None:
            raise UserError(f"{name} is {type(module).__name__}, not a linear layer")
        self.check(name, *kind.shape(module))

    def check(self, name: str, m: int, n: int) -> None:
        """Check that the factors fit an (m, n) weight.

        Raises:
            UserError: a shape, `eta` or `trainable` that does not fit; names layer, value and bound.
        """
        if self.B.ndim != 2 or self.A.ndim != 2 or self.shape != (m, n):
            shapes = f"B {tuple(self.B.shape)} and A {tuple(self.A.shape)}"
            raise UserError(f"{name}: {shapes} do not fit a weight of shape ({m}, {n})")
        inner = core.shape(self.M) or (self.A.shape[0], self.A.shape[0])
        if inner != (self.B.shape[1], self.A.shape[0]):
            raise UserError(f"{name}: core {inner} does not join B {tuple(self.B.shape)} and A {tuple(self.A.shape)}")
        if not math.isfinite(self.eta):
            raise UserError(f"{name}: eta={self.eta} is not a finite number")
        unknown = self.trainable - {"A", "B", "M"}
        if unknown or ("M" in self.trainable and isinstance(self.M, Identity)):
            raise UserError(f"{name}: trainable={sorted(self.trainable)}; choose among A, B and, with a core, M")
        if self.shared & self.trainable:
            raise UserError(f"{name}: {sorted(self.shared & self.trainable)} cannot both train and be shared")
