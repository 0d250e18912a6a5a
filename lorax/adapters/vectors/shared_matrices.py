"""SharedMatrices: trained vectors around random matrices that all layers have in common (VeRA).

Delta W = diag(b) B diag(d) A        A: (r, n), B: (m, r), frozen, from a key

A tensor of them is in memory once for all layers of a size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from lorax.adapters.core import Diagonal
from lorax.adapters.face import Share
from lorax.adapters.factors import Factors
from lorax.adapters.files.format import digest
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.errors import UserError

_in_use: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()


@dataclass(frozen=True)
class SharedMatrices:
    """The plan: the vectors, and what names the matrices."""

    b: Tensor
    """(m,), at step 0."""
    d: Tensor
    """(r,), at step 0."""
    n: int
    """Width of the layer's input."""
    key: int
    """Seed of A and B."""

    shifts_base = False

    def check_module(self, name: str, module: nn.Module) -> None:
        """Check that the vectors fit the module's weight."""
        from lorax.adapters.kinds import find_kind

        kind = find_kind(module)
        if kind is None:
            raise UserError(f"{name} is {type(module).__name__}, not a linear layer")
        if kind.shape(module) != (len(self.b), self.n):
            raise UserError(f"{name}: vectors for ({len(self.b)}, {self.n}) do not fit {kind.shape(module)}")

    def count_trainable(self) -> int:
        """Return m + r."""
        return self.b.numel() + self.d.numel()

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> SharedMatrices:
        """Return the same plan in another dtype and place."""
        return replace(self, b=self.b.to(device=device, dtype=dtype), d=self.d.to(device=device, dtype=dtype))

    def build(self, *, fold: bool = False, dropout: float = 0.0, share: Share | None = None) -> SharedMatricesAdapter:
        """Return the trainable module."""
        return SharedMatricesAdapter(self, dropout)

    @classmethod
    def restore(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SharedMatrices:
        """Build the plan from `SharedMatricesAdapter.describe` and the saved tensors.

        Raises:
            UserError: the key gives other matrices here than where it was trained.
        """
        plan = cls(tensors["b"], tensors["d"], int(described["n"]), int(described["key"]))
        if described["matrices"] != _fingerprint(plan.key, len(plan.d)):
            raise UserError(f"key={plan.key} gives other random matrices with this version of torch than at saving")
        return plan


class SharedMatricesAdapter(LayerAdapter):
    """One run's vectors at one layer."""

    eta = 1.0
    A: Tensor
    B: Tensor

    def __init__(self, plan: SharedMatrices, dropout: float):
        super().__init__(dropout)
        self.key = plan.key
        self.b, self.d = nn.Parameter(plan.b.detach().clone()), nn.Parameter(plan.d.detach().clone())
        m, r = len(plan.b), len(plan.d)
        self.register_buffer("A", _matrix(plan.key, r, plan.n, plan.d, right=True), persistent=False)
        self.register_buffer("B", _matrix(plan.key, r, m, plan.d, right=False), persistent=False)

    def output(
        self, x: Tensor, base: Tensor, weight: Callable[[], Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return base + b * ((d * x A^T) B^T)."""
        x = x.to(base.dtype)
        if mask is not None:
            x = x * mask
        h = (x @ self.A.to(x.dtype).mT) * self.d.to(x.dtype)
        return base + (h @ self.B.to(x.dtype).mT) * self.b.to(x.dtype)

    def delta(self, weight: Callable[[], Tensor] | None = None) -> Tensor:
        """Return diag(b) B diag(d) A, (m, n)."""
        return self.b[:, None] * ((self.B * self.d) @ self.A)

    def factors(self) -> Factors:
        """Return the current values as factors around a diagonal core, b in the left one."""
        B, core = self.b.detach()[:, None] * self.B, Diagonal(self.d.detach())
        return Factors(B, core, self.A, self.eta, frozenset({"M"}))

    def describe(self) -> dict[str, Any]:
        """Return what `SharedMatrices.restore` needs beside the tensors."""
        r, n = self.A.shape
        matrices = _fingerprint(self.key, r)
        return {"plan": "shared_matrices", "eta": self.eta, "n": n, "key": self.key, "matrices": matrices, "report": {}}


def _matrix(key: int, r: int, size: int, like: Tensor, right: bool) -> Tensor:
    """Return A, (r, size), or B, (size, r): one tensor for all layers of that size while one of them holds it."""
    name = (key, r, size, like.dtype, like.device, right)
    found = _in_use.get(name)
    if found is None:
        rows = _draw(key, r, size, right)
        rows = (rows * math.sqrt(6 / size)).mT.contiguous() if right else rows * math.sqrt(6 / r)
        found = _in_use[name] = rows.to(like.device, like.dtype)
    return found


def _draw(key: int, r: int, size: int, right: bool) -> Tensor:
    """Return (size, r) draws from U(-1, 1) in float64, of which a larger matrix has these as its first rows."""
    generator = torch.Generator().manual_seed(2 * key + right)
    return torch.empty(size, r, dtype=torch.float64).uniform_(-1, 1, generator=generator)


def _fingerprint(key: int, r: int) -> str:
    """Return what tells the matrices of a key from others."""
    return digest(torch.cat([_draw(key, r, 16, right) for right in (False, True)]))
