"""MiSS: one trained matrix on sums of the input's shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Method
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("miss")
@dataclass(frozen=True, kw_only=True)
class MiSS(Method):
    """Delta W = B A, A[j, c] = 1 where c = j mod r, else 0, and frozen; B (m x r) trained from 0 (arXiv:2409.15371).

    The input's n values are cut into shards of r, the last one filled with zeros, and the shards are added:
    (A x)_j = x_j + x_{j+r} + x_{j+2r} + ...; no alpha, eta = 1; r m values a layer.

    Side taken: the published method, which is PEFT's `init_weights=True`. Its `bat`, whose update is multiplied by the
    weight, and its `mini`, which repeats a narrower matrix over the outputs, are other methods.
    """

    rank: int = 8
    """Length r of a shard."""

    eta: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Check the value."""
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UserError(f"rank={self.rank}: a positive whole number is needed")

    @property
    def smallest(self) -> int:
        """The rank: a larger B would be no longer low-rank."""
        return self.rank

    def check(self, name: str, m: int, n: int) -> None:
        """Raise UserError where the rank exceeds min(m, n)."""
        if self.rank > min(m, n):
            raise UserError(f"layer {name}: rank={self.rank} exceeds {min(m, n)}, min(m, n) of its {m}x{n} weight")

    def count(self, m: int, n: int) -> int:
        """Return r m."""
        return self.rank * m

    def __call__(self, probe: Probe) -> Factors:
        """Return B = 0 on the shard sums, which all lanes share."""
        import torch

        from lorax.adapters.core import Identity
        from lorax.adapters.factors import Factors

        m, n = probe.shape
        B = torch.zeros(m, self.rank, device=probe.device, dtype=probe.dtype)
        shards = torch.eye(self.rank, device=probe.device, dtype=probe.dtype).repeat(1, -(-n // self.rank))
        A = shards[:, :n].contiguous()
        return Factors(
            B=B, M=Identity(), A=A, eta=self.eta, trainable=frozenset({"B"}), shared=frozenset({"A"})
        )  # fmt: skip
