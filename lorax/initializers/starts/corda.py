"""CorDA: triplets of the weight in the norm that the layer's inputs give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Ranked, one_of, positive
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.adapters.factors import Factors
    from lorax.probing.probe import Probe

MODES = ("ipm", "kpm")
_LEAST = 1e-7  # of ||W C||_F: below it a singular value got from a Gram matrix in float64 is noise


@register("corda")
@dataclass(frozen=True, kw_only=True)
class CorDA(Ranked):
    """B = U sqrt(S / eta), A = sqrt(S / eta) V^T C^-1, W_fz = W0 - eta B0 A0, with W0 C = U S V^T (arXiv:2406.05223).

    C = X^T X / T + damping * mean(diag) I is the second moment of the layer's inputs. `ipm` trains the r largest
    triplets, the directions that the calibration data use most; `kpm` the r smallest, which keeps what such data need:
    they are meant to be about the knowledge to keep, while a run calibrates on its task (`lorax.attach` takes any).
    Since V^T C^-1 = S^-1 U^T W0, eta B0 A0 = U U^T W0 and no inverse is formed. Under ipm no other rank-r matrix D has
    a smaller ||(W0 - D) C||_F (Eckart-Young). alpha = rank, hence eta = 1, is the authors'.

    Sides taken: C is scaled to a mean diagonal of 1, so that the size of the inputs does not decide how the product is
    shared between B and A; the code divides each sample by |max x| instead, the maximum of the signed values. The
    code doubles its damping until C C^-1 is close to I in float32, which nothing asks for here.
    """

    mode: str = "ipm"
    """ipm (instruction-previewed) | kpm (knowledge-preserved)."""
    damping: float = 0.01
    """What is added to the diagonal of C, in units of its mean."""
    default_alpha: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        one_of("mode", self.mode, MODES)
        positive("damping", self.damping)

    @property
    def needs(self) -> frozenset[str]:
        """The weight, and the inputs' second moments."""
        return frozenset({"weight", "activations"})

    @property
    def lr_factor(self) -> float:
        """1 / sqrt(eta): the factors' norms fall with sqrt(eta), as PiSSA's."""
        return float(self.eta**-0.5)

    def __call__(self, probe: Probe) -> Factors:
        """Return the triplets, the singular values shared evenly between the factors.

        Raises:
            UserError: the inputs are zero, or a triplet is, in which no gradient would arrive.
        """
        from lorax.adapters.core import Identity
        from lorax.adapters.factors import Factors

        W, moment = probe.weight.cpu().double(), probe.activations().cpu().double()
        mean = float(moment.diagonal().mean())
        if mean <= 0:
            raise UserError(f"layer {probe.name}: its inputs are 0 on the calibration data; corda has no C")
        moment /= mean
        moment.diagonal().add_(self.damping)
        weighted = W @ moment
        U, S = self._triplets(weighted)
        if not float(S[-1]) > _LEAST * float(weighted.norm()):
            raise UserError(
                f"layer {probe.name}: corda mode={self.mode} rank={self.rank}, but a singular value of W C is "
                f"{float(S[-1]):.1e}: that direction would start at zero and never train"
            )
        root = (S * self.eta).sqrt()
        captured = float(S.square().sum() / weighted.square().sum())
        return Factors(
            B=(U * (root / self.eta)).to(probe.device, probe.dtype),
            M=Identity(),
            A=((U.mT @ W) / root[:, None]).to(probe.device, probe.dtype),
            eta=self.eta,
            trainable=frozenset({"A", "B"}),
            shifts_base=True,
            report={"captured": captured, "sigma_1": float(S[0]), "sigma_r": float(S[-1])},
        )

    def _triplets(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Return (U, S) of the r largest or smallest of the min(m, n) triplets of Y, descending."""
        import torch

        from lorax.probing.symmetric import eigenvectors

        wide = Y.shape[0] <= Y.shape[1]
        end = {"last": self.rank} if self.mode == "ipm" else {"first": self.rank}
        Q = eigenvectors(Y @ Y.mT if wide else Y.mT @ Y, **end).flip(1)
        if wide:
            U, S = Q, torch.linalg.vector_norm(Q.mT @ Y, dim=1)
        else:
            U = Y @ Q
            S = torch.linalg.vector_norm(U, dim=0)
            U = U / S.clamp_min(1e-300)
        peaks = U.gather(0, U.abs().argmax(dim=0)[None])[0]
        return U * torch.where(peaks < 0, -1.0, 1.0).to(U), S
