"""How well a method's first step follows full fine-tuning, and how well any first step could."""

from __future__ import annotations

from torch import Tensor

from lorax.adapters.factors import Factors
from lorax.diagnostics.angles import Angle, energy, share
from lorax.diagnostics.first_step import adam, reach, sgd
from lorax.probing import svd

ADAM_STEP = 1e-4  # applied exactly; the direction depends on its size through products of two changes alone


def captured(G: Tensor, *ranks: int) -> list[float | None]:
    """Return sum_{i<=r} s_i^2 / ||G||_F^2 for each r: the energy of G's best rank-r approximation (Eckart-Young).

    None for G = 0. One decomposition serves all ranks.
    """
    total, k = energy(G), min(G.shape)
    if not total:
        return [None] * len(ranks)
    S = svd.leading(G, min(max(ranks), k)).S
    return [1.0 if r >= k else share(energy(S[:r]), total) for r in ranks]


def first_step_alignment(
    factors: Factors | None, G: Tensor, rank: int, lr: float = ADAM_STEP, angles: dict[str, Angle] | None = None
) -> dict[str, float | None]:
    """Return the alignment of one layer's first step.

    Args:
        factors: at step 0; None where the weight itself trains.
        G: (m, n) gradient of the loss at W0.
        rank: r; captured energy is reported at r and 2r.
        lr: of the Adam step.
        angles: {metric: angle over layers}; if given, this layer's steps are added to them.

    Returns:
        cosine_first: cos(dW_1, -G) of the first SGD step, in closed form as lr -> 0;
        cosine_first_adam: the same for the first Adam step, applied;
        cosine_first_adam_full: the cosine of that step with full fine-tuning's own first Adam step, -sign G;
        reach: the largest cosine with -G that any small step of the trained tensors could have;
        captured_r, captured_2r: gradient energy of the best rank-r, rank-2r approximations;
        optimum_r, optimum_2r: their square roots, the best cosines at rank r and 2r.
    """
    angles = {} if angles is None else angles
    if factors is not None:
        G = G.to(factors.B)
    full = -G / (G.abs() + 1e-8)
    by_sgd, by_adam = (-G, full) if factors is None else (sgd(factors, G), adam(factors, G, lr))
    captured_at = dict(zip(("r", "2r"), captured(G, rank, 2 * rank), strict=True))
    return {
        "cosine_first": angles.setdefault("cosine_first", Angle()).add(by_sgd, -G),
        "cosine_first_adam": angles.setdefault("cosine_first_adam", Angle()).add(by_adam, -G),
        "cosine_first_adam_full": angles.setdefault("cosine_first_adam_full", Angle()).add(by_adam, full),
        "reach": (1.0 if energy(G) else None) if factors is None else reach(factors, G),
        **{f"captured_{multiple}": value for multiple, value in captured_at.items()},
        **{f"optimum_{multiple}": None if value is None else value**0.5 for multiple, value in captured_at.items()},
    }
