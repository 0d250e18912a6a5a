"""VeRA: two random matrices for all layers, and trained vectors around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Method, positive
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.face import LayerPlan
    from lorax.probing.probe import Probe


@register("vera")
@dataclass(frozen=True, kw_only=True)
class VeRA(Method):
    """Delta W = diag(b) B diag(d) A; b (m) from 0 and d (r) from `d_initial` train (arXiv:2310.11454); m + r values.

    A (r x n) and B (m x r) are frozen, Kaiming-uniform, drawn once from `key` for all layers: a layer takes the first n
    columns and the first m rows. No alpha; the rank may exceed m and n (the authors' are 256 to 1024).

    Sides taken: the bound of a layer's A is sqrt(6 / n) with its own n; PEFT slices a matrix whose bound is that of the
    widest layer, which is the same where all layers have one width. The matrices are drawn on the CPU in float64, so
    that `key` means one pair of matrices on every device; a saved adapter holds `key` and a digest, not the matrices.
    """

    rank: int = 8
    """Inner dimension r."""
    d_initial: float = 0.1
    """Start of d."""
    key: int = 0
    """Seed of the shared matrices; the run's own seed does not enter them."""

    eta: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        for field, least in (("rank", 1), ("key", 0)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{field}={value}: a whole number of at least {least} is needed")
        positive("d_initial", self.d_initial)

    def check(self, name: str, m: int, n: int) -> None:
        """Accept every shape."""

    def count(self, m: int, n: int) -> int:
        """Return m + r."""
        return m + self.rank

    def __call__(self, probe: Probe) -> LayerPlan:
        """Return b = 0 and d between the shared matrices."""
        import torch

        from lorax.adapters.vectors.shared_matrices import SharedMatrices

        m, n = probe.shape
        b = torch.zeros(m, device=probe.device, dtype=probe.dtype)
        d = torch.full((self.rank,), self.d_initial, device=probe.device, dtype=probe.dtype)
        return SharedMatrices(b, d, n, self.key)
