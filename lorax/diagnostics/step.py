"""The first optimiser step of an adapter, as a change of the weight, from the factors and the gradient.

    W' = W_fz + eta B M A     g_B = eta G A^T M^T     g_M = eta B^T G A^T (on M's pattern)     g_A = eta M^T B^T G

A step (dB, dM, dA) of what trains changes the weight by

    eta [ dB M A + B dM A + B M dA ] + higher orders                                             `tangent`
    eta [ dB (M + dM)(A + dA) + B dM (A + dA) + B M dA ]                                         `applied`, exact

so that plain SGD, in the limit of a small step, goes in the direction -(P_B G + G P_A + ...) that
`tangent` gives for (-g_B, -g_M, -g_A), whatever the core and whatever trains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorax.adapters import core
from lorax.adapters.core import Core, Dense, Diagonal, Identity, Sparse
from lorax.adapters.factors import Factors
from lorax.diagnostics.angles import energy

Changes = dict[str, Tensor]
"""A change of each trained tensor: B (m, r_out), A (r_in, n), M as the core's values."""
ORTHONORMAL = 1e-4  # |Q^T Q - I| up to which fp32 singular vectors count as orthonormal


def gradients(factors: Factors, G: Tensor) -> Changes:
    """Return dL/dB, dL/dM, dL/dA, of those that train.

    Args:
        factors: at the point where the gradient is taken.
        G: (m, n) dL/dW' of the effective weight, in the factors' dtype and place.
    """
    B, M, A, eta = factors.B, factors.M, factors.A, factors.eta
    found: Changes = {}
    if "B" in factors.trainable:
        found["B"] = eta * (G @ core.apply(M, A.mT))
    if "M" in factors.trainable:
        found["M"] = eta * on_pattern(M, B.mT @ G, A)
    if "A" in factors.trainable:
        found["A"] = eta * (core.left_multiply(B, M).mT @ G)
    return found


def on_pattern(M: Core, left: Tensor, A: Tensor) -> Tensor:
    """Return left A^T, (r_out, r_in), where the core has values, in the order of its values.

    Raises:
        TypeError: the identity has none.
    """
    match M:
        case Diagonal():
            return (left * A).sum(dim=1)
        case Dense():
            return left @ A.mT
        case Sparse():
            return (left @ A.mT)[M.rows, M.cols]
    raise TypeError(f"core {type(M).__name__} has no values")


def tangent(factors: Factors, changes: Changes) -> Tensor:
    """Return the first-order change of the weight, (m, n)."""
    return _change(factors, changes, factors.M, factors.A)


def applied(factors: Factors, changes: Changes) -> Tensor:
    """Return the whole change of the weight, (m, n), in the telescoped form that loses no digits."""
    M, A = factors.M, factors.A
    if "M" in changes:
        M = core.with_values(M, core.values(M) + changes["M"])
    return _change(factors, changes, M, A + changes["A"] if "A" in changes else A)


def _change(factors: Factors, changes: Changes, M: Core, A: Tensor) -> Tensor:
    total = torch.zeros(factors.shape, dtype=factors.B.dtype, device=factors.B.device)
    if "B" in changes:
        total += core.left_multiply(changes["B"], M) @ A
    if "M" in changes:
        total += core.left_multiply(factors.B, core.with_values(factors.M, changes["M"])) @ A
    if "A" in changes:
        total += core.left_multiply(factors.B, factors.M) @ changes["A"]
    return factors.eta * total


def sgd(factors: Factors, G: Tensor) -> Tensor:
    """Return dW_1 / lr of the first SGD step as lr -> 0, (m, n).

        dW_1 / lr = -eta^2 [ G A^T M^T M A + B pattern(B^T G A^T) A + B M M^T B^T G ]     (terms of what trains)

    For LoRA this is -eta^2 G A^T A (B = 0); for LoRA-GA -zeta G_2r (arXiv:2407.05000).
    """
    return tangent(factors, {name: -value for name, value in gradients(factors, G).items()})


def adam(factors: Factors, G: Tensor, lr: float = 1e-4, eps: float = 1e-8) -> Tensor:
    """Return dW_1 of the first Adam step of size lr, (m, n), by applying it.

    Each trained value moves by -lr g / (|g| + eps): its sign, as the bias correction cancels the betas.

    Args:
        factors: at step 0.
        G: (m, n) gradient, on the scale of the loss (eps is absolute).
        lr: size of the step; enters through the products dB dA only.
        eps: Adam's.
    """
    steps = {name: -lr * g / (g.abs() + eps) for name, g in gradients(factors, G).items()}
    return applied(factors, steps)


def reach(factors: Factors, G: Tensor) -> float | None:
    """Return the largest cosine with G that any small step of the trained tensors can have.

    It is ||T G|| / ||G||, with T the projector onto { dB M A + B dM A + B M dA }: for A and B, all but
    (I - P_BM) G (I - P_MA); for a dense core alone, P_B G P_A; for a sparse or diagonal core alone
    between orthonormal factors, the part of B^T G A^T on the pattern.

    Returns:
        A share in [0, 1]; None for other combinations and for G = 0.
    """
    kept = _reachable(factors, G)
    whole = energy(G)
    return None if kept is None or not whole else min(1.0, (kept / whole) ** 0.5)


def _reachable(factors: Factors, G: Tensor) -> float | None:
    trains, B, M, A = factors.trainable, factors.B, factors.M, factors.A
    if trains <= {"A", "B"}:
        kept = 0.0
        if "A" in trains:
            Q = _basis(core.left_multiply(B, M))
            part = Q.mT @ G
            kept, G = energy(part), G - Q @ part
        return kept + energy(G @ _basis(core.apply(M, A.mT))) if "B" in trains else kept
    if trains == {"M"} and isinstance(M, Dense):
        return energy(_basis(B).mT @ G @ _basis(A.mT))
    if trains == {"M"} and not isinstance(M, Identity) and _orthonormal(B) and _orthonormal(A.mT):
        return energy(on_pattern(M, B.mT @ G, A))
    return None


def _basis(X: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns of X, (m, rank)."""
    U, S, _ = torch.linalg.svd(X, full_matrices=False)
    bound = max(X.shape) * torch.finfo(X.dtype).eps * (float(S[0]) if len(S) else 0.0)
    return U[:, S > bound]


def _orthonormal(X: Tensor) -> bool:
    gram = X.mT @ X
    return bool((gram - torch.eye(len(gram), dtype=X.dtype, device=X.device)).abs().max() < ORTHONORMAL)
