"""The shape of an update W' - W0: its size, its effective rank, and its overlap with the singular vectors of W0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lorax.diagnostics.angles import energy, share
from lorax.errors import UserError
from lorax.probing import svd
from lorax.probing.svd import Triplets

TOP_K = 10
EPSILON = 0.5
SUBSPACE = 8


def singular_values(X: Tensor) -> Tensor:
    """Return the min(m, n) singular values, float64, descending, from the smaller Gram matrix.

    Exact to about 1e-8 of the largest, which is what an entropy needs.
    """
    X = (X if X.shape[0] <= X.shape[1] else X.mT).double()
    return torch.linalg.eigvalsh(X @ X.mT).flip(0).clamp_min(0).sqrt()


def effective_rank(S: Tensor) -> float | None:
    """Return exp(entropy of p), p_i = s_i / sum s; None for the zero matrix.

    Between 1 and the number of nonzero singular values; the number itself where they are equal.
    Source: Roy and Vetterli, EUSIPCO 2007.

    Examples:
        >>> import torch
        >>> round(effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])), 6)
        3.0
    """
    total = float(S.double().sum())
    if not 0 < total < math.inf:
        return None
    p = S.double() / total
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def stable_rank(S: Tensor) -> float | None:
    """Return ||X||_F^2 / ||X||_2^2 from the singular values; None for the zero matrix."""
    return share(energy(S), float(S.double().max()) ** 2) if len(S) else None


def best_cosines(base: Tensor, new: Tensor) -> Tensor:
    """Return, for each new singular vector, its largest |cosine| with any of the base's, (k,).

    Args:
        base: (m, k0) orthonormal columns, all left singular vectors of W0.
        new: (m, k) orthonormal columns, of W'.
    """
    return (base.mT.to(new.dtype) @ new).abs().amax(dim=0)


def intruders(base: Tensor, new: Tensor, epsilon: float = EPSILON) -> int:
    """Return how many of the new singular vectors have a |cosine| below `epsilon` with each of the base's.

    Source: intruder dimensions, arXiv:2410.21228, algorithm 1: the top k = 10 left singular vectors of W'
    against all left singular vectors of W0, epsilon = 0.5 unless stated.
    """
    return int((best_cosines(base, new) < epsilon).sum())


def energy_share(X: Tensor, Q: Tensor) -> float | None:
    """Return ||Q^T X||_F^2 / ||X||_F^2: how much of X lies in the span of Q's orthonormal columns."""
    return share(energy(Q.mT.to(X.dtype) @ X), energy(X))


def update_shape(
    W0: Tensor,
    delta: Tensor,
    base: Triplets,
    subspace: int = SUBSPACE,
    top_k: int = TOP_K,
    epsilon: float = EPSILON,
) -> dict[str, float | None]:
    """Return what is measured of one layer's update.

    Args:
        W0: (m, n) pretrained weight, float32 or float64.
        delta: (m, n) W' - W0.
        base: all min(m, n) triplets of W0.
        subspace: dimension r of W0's top and bottom subspaces.
        top_k: how many singular vectors of W' are checked for intruders.
        epsilon: threshold on the cosine.

    Returns:
        relative_norm ||dW||_F / ||W0||_F; effective_rank, stable_rank; intruders (a count) and
        intruder_cosine (the smallest of the top_k best cosines); overlap_top and overlap_bottom, the shares
        of ||dW||_F^2 in W0's top-r and bottom-r singular subspaces: each is the mean of the share of the columns
        (`_left`) and of the rows (`_right`), which are given too; overlap_chance, the expected overlap of a random
        update, the mean of r/m and r/n. The bottom subspace is that of the last of the min(m, n) triplets, not the
        null space. Where the update is not finite, only relative_norm, which is None.

    Raises:
        UserError: `subspace` or `top_k` below 1.
    """
    if subspace < 1 or top_k < 1:
        raise UserError(f"diagnostics subspace={subspace}, top_k={top_k}: both must be at least 1")
    k = min(W0.shape)
    r, top_k = min(subspace, k), min(top_k, k)
    if not bool(torch.isfinite(delta).all()):
        return {"relative_norm": None}  # training diverged
    S = singular_values(delta)
    moved = bool(S[0] > 0)
    best = best_cosines(base.U.double(), svd.top(W0 + delta.to(W0.dtype), top_k).U) if moved else torch.ones(top_k)
    overlaps: dict[str, float | None] = {}
    for end, part in {"top": slice(0, r), "bottom": slice(k - r, k)}.items():
        left = energy_share(delta, base.U[:, part])
        right = energy_share(delta.mT, base.Vh[part].mT)
        overlaps[f"overlap_{end}"] = None if left is None or right is None else (left + right) / 2
        overlaps |= {f"overlap_{end}_left": left, f"overlap_{end}_right": right}
    return {
        "relative_norm": share(energy(delta) ** 0.5, energy(W0) ** 0.5),
        "effective_rank": effective_rank(S),
        "stable_rank": stable_rank(S),
        "intruders": float((best < epsilon).sum()),
        "intruder_cosine": float(best.min()),
        **overlaps,
        "overlap_chance": (r / W0.shape[0] + r / W0.shape[1]) / 2,
    }
