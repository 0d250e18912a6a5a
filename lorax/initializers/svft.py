"""SVFT: a sparse trained core between all singular vectors of the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Method, one_of
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.adapters.core import Core
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe

PATTERNS = ("plain", "banded", "random", "top_k")


@register("svft")
@dataclass(frozen=True, kw_only=True)
class SVFT(Method):
    """Delta W = U M V^T, M sparse on a fixed pattern, U and V frozen (arXiv:2405.19597); no rank, eta = 1.

    With k = min(m, n) and width d: `plain` trains the diagonal (k values); `banded` the cells with
    |i - j| <= d; `random` and `top_k` as many cells as the band has, k (2d + 1) - d (d + 1).

    Sides taken: M = 0, so that step 0 is exactly the base (the authors' code overwrites it with Kaiming
    noise); no gate (an extra scalar in their code, not in the paper's counts); random cells are distinct
    (theirs are drawn with replacement); top_k ranks |u_i . v_j|, absolute (their code keeps signs), and
    is an error where m != n, since u and v then live in different spaces and the paper has no rule.
    """

    pattern: str = "plain"
    """plain | banded | random | top_k."""
    width: int = 2
    """Half width d of the band, which also sets the number of cells of random and top_k."""

    eta: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        one_of("pattern", self.pattern, PATTERNS)
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 0:
            raise UserError(f"width={self.width}: a whole number of at least 0 is needed")

    @property
    def needs(self) -> frozenset[str]:
        """All of the weight's triplets."""
        return frozenset({"svd"})

    @property
    def smallest(self) -> int:
        """One more than the half width of the band."""
        return 1 if self.pattern == "plain" else self.width + 1

    @property
    def idle(self) -> frozenset[str]:
        """Fields without effect: the width of a plain pattern."""
        return frozenset({"width"} if self.pattern == "plain" else ())

    def check(self, name: str, m: int, n: int) -> None:
        """Raise UserError where the pattern does not exist on an (m, n) weight."""
        if self.pattern != "plain" and self.width >= min(m, n):
            raise UserError(f"layer {name}: svft width={self.width} must be below min(m, n)={min(m, n)}")
        if self.pattern == "top_k" and m != n:
            raise UserError(
                f"layer {name}: svft pattern=top_k ranks |u_i . v_j|, which a {m}x{n} weight does not have; "
                "use it on square layers, or banded or random"
            )

    def count(self, m: int, n: int) -> int:
        """Return k, or k (2d + 1) - d (d + 1) where the pattern has a width."""
        k, d = min(m, n), self.width
        return k if self.pattern == "plain" else k * (2 * d + 1) - d * (d + 1)

    def __call__(self, probe: Probe) -> Factors:
        """Return all singular vectors, frozen, around a zero core on the pattern."""
        from lorax.adapters.factors import Factors

        U, S, Vh = probe.full_svd()
        return Factors(
            B=U,
            M=self._core(probe, U, Vh),
            A=Vh,
            eta=self.eta,
            trainable=frozenset({"M"}),
            report=probe.facts | {"sigma_1": float(S[0]), "sigma_min": float(S[-1])},
            shared=frozenset({"A", "B"}),
        )

    def _core(self, probe: Probe, U: Tensor, Vh: Tensor) -> Core:
        import torch

        from lorax.adapters.core import Diagonal, Sparse

        k = min(probe.shape)
        zeros = torch.zeros(self.count(*probe.shape), device=probe.device, dtype=probe.dtype)
        if self.pattern == "plain":
            return Diagonal(zeros)
        cells = self._cells(probe, U, Vh).sort().values.to(probe.device)
        return Sparse(cells // k, cells % k, zeros, (k, k))

    def _cells(self, probe: Probe, U: Tensor, Vh: Tensor) -> Tensor:
        """Return the distinct flat indices i k + j of the pattern."""
        import torch

        k, count = min(probe.shape), self.count(*probe.shape)
        if self.pattern == "banded":
            rows = torch.arange(k)[:, None].expand(k, 2 * self.width + 1)
            cols = rows + torch.arange(-self.width, self.width + 1)
            inside = (cols >= 0) & (cols < k)
            return (rows * k + cols)[inside]
        if self.pattern == "random":
            import numpy as np

            seed = int(torch.randint(2**62, (), generator=probe.generator))
            draw = np.random.default_rng(seed)  # O(count) without replacement; torch would permute k^2 cells
            return torch.from_numpy(draw.choice(k * k, count, replace=False, shuffle=False))
        scores = (U.T @ Vh.T).abs().flatten()
        return scores.topk(count).indices
