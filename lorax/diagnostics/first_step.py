"""The first optimiser step of an adapter, as a change of the weight, from the factors and the gradient.

    W' = W_fz + eta B M A     g_B = eta G A^T M^T     g_M = eta B^T G A^T (on M's pattern)     g_A = eta M^T B^T G

A step (dB, dM, dA) of the trained tensors changes the weight by

    eta [ dB M A + B dM A + B M dA ] + higher orders                                             `tangent`
    eta [ dB (M + dM)(A + dA) + B dM (A + dA) + B M dA ]                                         `applied`, exact

So plain SGD, in the limit of a small step, changes the weight in the direction that `tangent` gives for
(-g_B, -g_M, -g_A); this holds for every core M and every choice of trained tensors.
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
ORTHONORMAL = 1e-4  # largest entry of |Q^T Q - I| with which the columns of Q count as orthonormal, in fp32


def gradients(factors: Factors, G: Tensor) -> Changes:
    """Return dL/dB, dL/dM and dL/dA, for those of them that train.

    Args:
        factors: at the point where the gradient is taken.
        G: (m, n) dL/dW' of the effective weight, in the factors' dtype and on their device.
    """
    B, M, A, eta = factors.B, factors.M, factors.A, factors.eta
    by_tensor: Changes = {}
    if "B" in factors.trainable:
        by_tensor["B"] = eta * (G @ core.apply(M, A.mT))
    if "M" in factors.trainable:
        by_tensor["M"] = eta * on_pattern(M, B.mT @ G, A)
    if "A" in factors.trainable:
        by_tensor["A"] = eta * (core.left_multiply(B, M).mT @ G)
    return by_tensor


def on_pattern(M: Core, left: Tensor, A: Tensor) -> Tensor:
    """Return the entries of left A^T, (r_out, r_in), at the places of the core's values, in their order.

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
    """Return the exact change of the weight, (m, n), in the telescoped form, which has no cancellation."""
    M, A = factors.M, factors.A
    values = core.values(M)
    if values is not None and "M" in changes:
        M = core.with_values(M, values + changes["M"])
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
        lr: size of the step; the direction depends on it through the products dB dA only.
        eps: Adam's.
    """
    steps = {name: -lr * g / (g.abs() + eps) for name, g in gradients(factors, G).items()}
    return applied(factors, steps)


def reach(factors: Factors, G: Tensor) -> float | None:
    """Return the largest cosine with G that any small step of the trained tensors can have.

    It is ||T G|| / ||G||, with T the projector onto the tangent space { dB M A + B dM A + B M dA }. T G is, where A
    and B train, G - (I - P_BM) G (I - P_MA); where a dense core alone trains, P_B G P_A; where a sparse or diagonal
    core alone trains between orthonormal factors, the part of B^T G A^T on the core's pattern.

    Returns:
        A number in [0, 1]; None for other combinations and for G = 0.
    """
    reachable = _reachable_energy(factors, G)
    total = energy(G)
    return None if reachable is None or not total else min(1.0, (reachable / total) ** 0.5)


def _reachable_energy(factors: Factors, G: Tensor) -> float | None:
    """Return ||T G||_F^2."""
    trains, B, M, A = factors.trainable, factors.B, factors.M, factors.A
    if trains <= {"A", "B"}:
        by_a = 0.0
        if "A" in trains:
            Q = _basis(core.left_multiply(B, M))
            inside = Q.mT @ G
            by_a, G = energy(inside), G - Q @ inside
        return by_a + energy(G @ _basis(core.apply(M, A.mT))) if "B" in trains else by_a
    if trains == {"M"} and isinstance(M, Dense):
        return energy(_basis(B).mT @ G @ _basis(A.mT))
    if trains == {"M"} and not isinstance(M, Identity) and _orthonormal(B) and _orthonormal(A.mT):
        return energy(on_pattern(M, B.mT @ G, A))
    return None


def _basis(X: Tensor) -> Tensor:
    """Return an orthonormal basis of the column space of X, (m, rank)."""
    U, S, _ = torch.linalg.svd(X, full_matrices=False)
    bound = max(X.shape) * torch.finfo(X.dtype).eps * (float(S[0]) if len(S) else 0.0)
    return U[:, S > bound]


def _orthonormal(X: Tensor) -> bool:
    gram = X.mT @ X
    return bool((gram - torch.eye(len(gram), dtype=X.dtype, device=X.device)).abs().max() < ORTHONORMAL)
