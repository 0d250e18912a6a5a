"""EVA: A is the principal directions of the layer's inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lorax.errors import UserError
from lorax.initializers.base import Ranked, positive
from lorax.initializers.registry import register

if TYPE_CHECKING:
    from lorax.adapters.face import LayerPlan
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
    of mini-batches until the directions settle. Every layer has rank r: rows of a table are compared at one count; the
    authors and PEFT redistribute ranks by default (`rho` = 2).
    """

    rho: float = 1.0
    """1: every layer has rank r. Above it a layer offers up to rho r directions, at most min(m, n); of those of all L
    layers the L r with the largest shares of their layers' traces are kept. eta stays alpha / r; a layer without any
    is not adapted. The sum of ranks is fixed; the count of trained values depends on the data where shapes differ."""

    default_alpha: ClassVar[float | None] = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        positive("rho", self.rho)
        if self.rho < 1:
            raise UserError(f"rho={self.rho}: at least 1 is needed")

    @property
    def idle(self) -> frozenset[str]:
        """At rho = 1 nothing is redistributed."""
        return frozenset({"rho"} if self.rho == 1 else ())

    @property
    def sets_ranks(self) -> bool:
        """Whether ranks are redistributed."""
        return self.rho > 1

    @property
    def needs(self) -> frozenset[str]:
        """The inputs' second moments."""
        return frozenset({"activations"})

    def __call__(self, probe: Probe) -> Factors:
        """Return B = 0 and the principal directions; above rho = 1 all that are offered, around their shares.

        Raises:
            UserError: the inputs span fewer than r directions; above rho = 1: none.
        """
        import torch

        from lorax.adapters.core import Diagonal, Identity
        from lorax.adapters.factors import Factors
        from lorax.probing.symmetric import eigenvectors

        (m, n), r = probe.shape, self.rank if self.rho == 1 else min(round(self.rho * self.rank), *probe.shape)
        moment = probe.activations().cpu().double()
        V = eigenvectors(moment, last=r).flip(1)
        variances = ((moment @ V) * V).sum(0)
        total = float(moment.diagonal().sum())
        # below the rounding of the sums, taken in probe.dtype, and of the decomposition a direction is noise; no higher
        # bound would do, since one massive activation may hold all but 1e-5 of the trace
        rounding = 4 * torch.finfo(probe.dtype).eps + n * torch.finfo(torch.float64).eps
        spanned = int((variances > rounding * total).sum()) if total > 0 else 0
        if self.rho > 1 and spanned:
            r = min(r, spanned)
            V, variances = V[:, :r], variances[:r]
        if spanned < r:
            raise UserError(
                f"layer {probe.name}: eva rank={r}, but its inputs on the calibration data span {spanned} directions; "
                "give more batches, or lower the rank"
            )
        peaks = V.gather(0, V.abs().argmax(dim=0)[None])[0]
        A = (V * torch.where(peaks < 0, -1.0, 1.0).to(V)).mT
        return Factors(
            B=torch.zeros(m, r, device=probe.device, dtype=probe.dtype),
            M=Identity() if self.rho == 1 else Diagonal(variances / total),
            A=A.contiguous().to(probe.device, probe.dtype),
            eta=self.eta,
            trainable=frozenset({"A", "B"}),
            report={"captured": float(variances.sum()) / total},
        )

    def across(self, plans: Mapping[str, LayerPlan]) -> dict[str, LayerPlan]:
        """Keep the L r directions with the largest shares; of equal ones those of earlier layers.

        Raises:
            UserError: all layers together offer fewer.
        """
        from lorax.adapters.core import Diagonal
        from lorax.adapters.factors import Factors

        if self.rho == 1:
            return dict(plans)
        offers = {
            name: (plan, plan.M.values.tolist())
            for name, plan in plans.items()
            if isinstance(plan, Factors) and isinstance(plan.M, Diagonal)
        }
        shares = [(share, name) for name, (_, of_layer) in offers.items() for share in of_layer]
        budget = self.rank * len(offers)
        if len(shares) < budget:
            raise UserError(
                f"eva rank={self.rank} rho={self.rho:g}: the inputs of {len(offers)} layers span {len(shares)} "
                f"directions that count, {budget} are needed; give more batches, or lower the rank"
            )
        kept = sorted(shares, key=lambda pair: -pair[0])[:budget]
        ranks = Counter(name for _, name in kept)
        return {name: _first(offers[name][0], ranks[name]) for name in offers if ranks[name]}


def _first(offer: Factors, rank: int) -> Factors:
    """Return the first directions of an offer, around the identity."""
    from lorax.adapters.core import Identity, values

    shares = values(offer.M)
    report = {"captured": 0.0 if shares is None else float(shares[:rank].sum()), "rank": float(rank)}
    return replace(offer, B=offer.B[:, :rank].clone(), M=Identity(), A=offer.A[:rank].clone(), report=report)
