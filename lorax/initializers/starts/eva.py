"""EVA: A is the principal directions of the layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Ranked
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe


@register("eva")
@dataclass(frozen=True, kw_only=True)
class EVA(Ranked):
    """B = 0, A = the top r right singular vectors of the layer's inputs X (T x n), W_fz = W0 (arXiv:2410.07170).

    They are the eigenvectors of X^T X / T, whose r largest eigenvalues' share of the trace is `captured`. Among all
    orthonormal A (r x n) this one keeps the most of the inputs, sum_t ||A x_t||^2. alpha = 1, as the authors set it.

    Sides taken: X as it is, as the paper writes it; PEFT's incremental PCA takes the mean off. All tokens that are no
    padding count (PEFT: those with a label, by default). One exact decomposition over the calibration sample, in place
    of mini-batches until the directions settle. Every layer has rank r, the paper's rho = 1: rows of a table are
    compared at one count; the redistribution of ranks (rho = 2) is not here.
    """

    default_alpha: ClassVar[float | None] = 1.0

    @property
    def needs(self) -> frozenset[str]:
        """The inputs' second moments."""
        return frozenset({"activations"})

    def __call__(self, probe: Probe) -> Factors:
        """Return B = 0 and the principal directions.

        Raises:
            UserError: the inputs span fewer than r directions.
        """
        import torch

        from lorax.adapters.core import Identity
        from lorax.adapters.factors import Factors
        from lorax.probing.symmetric import eigenvectors

        (m, n), r = probe.shape, self.rank
        moment = probe.activations().cpu().double()
        V = eigenvectors(moment, last=r).flip(1)
        variances = ((moment @ V) * V).sum(0)
        total = float(moment.diagonal().sum())
        # below the rounding of the sums, taken in probe.dtype, and of the decomposition a direction is noise; no higher
        # bound would do, since one massive activation may hold all but 1e-5 of the trace
        rounding = 4 * torch.finfo(probe.dtype).eps + n * torch.finfo(torch.float64).eps
        spanned = int((variances > rounding * total).sum()) if total > 0 else 0
        if spanned < r:
            raise UserError(
                f"layer {probe.name}: eva rank={r}, but its inputs on the calibration data span {spanned} directions; "
                "give more batches, or lower the rank"
            )
        peaks = V.gather(0, V.abs().argmax(dim=0)[None])[0]
        A = (V * torch.where(peaks < 0, -1.0, 1.0).to(V)).mT
        return Factors(
            B=torch.zeros(m, r, device=probe.device, dtype=probe.dtype),
            M=Identity(),
            A=A.contiguous().to(probe.device, probe.dtype),
            eta=self.eta,
            trainable=frozenset({"A", "B"}),
            report={"captured": float(variances.sum()) / total},
        )
