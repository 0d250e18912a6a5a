"""DoRA: LoRA on the directions of the weight's rows, and a trained length for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.initializers.base import Ranked
from lorax.initializers.lora import LoRA
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.face import LayerPlan
    from lorax.probing.probe import Probe


@register("dora")
@dataclass(frozen=True, kw_only=True)
class DoRA(Ranked):
    """W' = diag(mag / ||W0 + eta B A||_row) (W0 + eta B A); B, A and mag (m) train (arXiv:2402.09353).

    B = 0, A as LoRA's, mag = ||W0||_row, so that step 0 is the base; the row norms of W' are mag at all times. The norm
    is a constant to the gradient (section 4.3 of the paper), in the forward and in the merged weight it is not.
    r (m + n) + m values a layer.

    Sides taken: one length for each output, a row of the (m, n) weight, as in the code (the paper writes columns of a
    transposed weight). Dropout acts on the low-rank path alone, as in LoRA; PEFT's acts on the input of all that is
    added, W0's part included. The norms come from ||W0||^2 + 2 eta <W0 A^T, B> + eta^2 B A A^T B^T, row by row,
    without an m x n matrix. W' - W0 has full rank, so no plain LoRA holds it: the export is PEFT's DoRA.
    """

    distribution: str = "kaiming"
    """kaiming | gaussian, of A."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self._lora()

    def _lora(self) -> LoRA:
        return LoRA(rank=self.rank, alpha=self.alpha, scaling=self.scaling, distribution=self.distribution)

    @property
    def needs(self) -> frozenset[str]:
        """The weight."""
        return frozenset({"weight"})

    def count(self, m: int, n: int) -> int:
        """Return r (m + n) + m."""
        return self.rank * (m + n) + m

    def __call__(self, probe: Probe) -> LayerPlan:
        """Return LoRA's factors and the row norms of the weight.

        Raises:
            UserError: a row of the weight is zero: it has no direction, and its length would never train.
        """
        from lorax.adapters.vectors.magnitude import Magnitude

        factors = self._lora()(probe)
        squares = probe.weight.square().sum(1)
        if not bool((squares > 0).all()):
            row = int((squares <= 0).nonzero()[0])
            raise UserError(f"layer {probe.name}: row {row} of its weight is zero, and has no direction for dora")
        return Magnitude(factors.B, factors.A, squares.sqrt(), squares, self.eta, probe.has_bias)
