"""Singular triplets (u, sigma, v) of one matrix: the largest, the smallest or all; exact or randomised.

Weights in float32 or less go through the eigenvectors of their Gram matrix in float64. That is 1.4 to 6 times
faster than LAPACK's gesdd in float32 and, at 576 x 576, 1e6 times more accurate; a Gram matrix in float32 would lose
the small singular values altogether. float64 weights go through gesdd, and so does whatever fails the residual check.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lorax.errors import UserError
from lorax.probing.symmetric import eigenvectors, one_thread

DENSE = 1024  # up to this min(m, n) dense solvers are used; above, block Krylov for few triplets
TOLERANCE = 1e-9  # relative residual demanded of what was computed in float64
KRYLOV_TOLERANCE = 1e-5  # relative residual demanded of block Krylov in float32
DEPTHS = (3, 4, 6, 9, 12, 16, 24)  # Krylov blocks at which convergence is checked; gradients converge at 3


class Triplets(NamedTuple):
    """Left singular vectors U (m, r), singular values S (r,) in descending order, right ones Vh (r, n)."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def rows(self, part: slice | list[int]) -> Triplets:
        """Return the triplets at the places that `part` holds."""
        return Triplets(self.U[:, part], self.S[part], self.Vh[part])

    def to(self, dtype: torch.dtype) -> Triplets:
        """Return contiguous copies in another dtype."""
        return Triplets(*(tensor.to(dtype).contiguous() for tensor in self))


def full(W: Tensor) -> Triplets:
    """Return all min(m, n) triplets of W in float64; U and V are orthonormal even where W is rank-deficient.

    Args:
        W: (m, n), float32 or float64, finite.

    Source: W W^T = U S^2 U^T; V from W^T U by division, or by QR where singular values come near zero.
    """
    X = W.double()
    if W.dtype == torch.float64:
        return _signed(_gesdd(X))
    return _signed(_checked(X, _by_gram_matrix(X)))


def top(W: Tensor, r: int) -> Triplets:
    """Return the r largest triplets of W: by block Krylov where it converges, else by the Gram matrix."""
    if W.dtype == torch.float64 or min(W.shape) <= DENSE:
        return full(W).rows(slice(0, r))
    if 8 * r <= min(W.shape):
        triplets = _converged_krylov(W, r)
        if triplets is not None:
            return triplets
    return _signed(_checked(W.double(), _by_gram_matrix(W.double(), last=r), slice(0, r)))


def bottom(W: Tensor, r: int) -> Triplets:
    """Return the r smallest triplets of W in float64, in descending order."""
    k = min(W.shape)
    if W.dtype == torch.float64 or k <= DENSE:
        return full(W).rows(slice(k - r, k))
    return _signed(_checked(W.double(), _by_gram_matrix(W.double(), first=r), slice(k - r, k)))


def ends(W: Tensor, r: int) -> Triplets:
    """Return the r largest and then the r smallest triplets of W in float64, from one decomposition.

    It costs about half of `full` where r is at most `most_at_ends(min(m, n))`.
    """
    k = min(W.shape)
    part = [*range(r), *range(k - r, k)]
    if W.dtype == torch.float64:
        return full(W).rows(part)
    X = W.double()
    return _signed(_checked(X, _by_gram_matrix(X, first=r, last=r), part))


def most_at_ends(k: int) -> int:
    """Return the largest r for which r triplets of each end cost clearly less than all k = min(m, n)."""
    return k // 12


def leading(W: Tensor, r: int) -> Triplets:
    """Return the r largest triplets of a matrix whose spectrum decays, such as a gradient.

    As `top`, but by block Krylov at every size: the first Krylov block holds nearly all the energy of a gradient.
    """
    if W.dtype == torch.float64 or 4 * r > min(W.shape):
        return full(W).rows(slice(0, r))
    triplets = _converged_krylov(W, r)
    if triplets is not None:
        return triplets
    return _signed(_checked(W.double(), _by_gram_matrix(W.double(), last=r), slice(0, r)))


def randomised(W: Tensor, r: int, generator: torch.Generator, tolerance: float = 1e-2) -> tuple[Triplets, float]:
    """Return the r largest triplets by randomised block Krylov, and a bound on the sine of the subspace angle.

        bound = ||R_r||_F / (s_r - s_{r+1} - ||R_{r+1}||)          (Wedin's sine theorem)

    with Ritz values s_i and residuals R. Krylov blocks are added until the bound reaches `tolerance`. If it does not,
    the triplets are those of `top` and the bound is 0.

    Args:
        W: (m, n).
        r: how many triplets.
        generator: on the CPU, draws the start block of r + max(8, r / 2) columns.
        tolerance: of the sine of the largest principal angle to the exact top-r subspaces of U and of V.

    Source: Musco and Musco, arXiv:1504.05477. The start block is wider than r because weight spectra are flat:
    svd_lowrank with q = r misses the subspace (sine 0.95 after 16 iterations on real weights).
    """
    found = within_sine(W, r, generator, tolerance)
    return (top(W, r), 0.0) if found is None else found


def within_sine(W: Tensor, r: int, generator: torch.Generator, tolerance: float) -> tuple[Triplets, float] | None:
    """Return what `randomised` does, or None where the bound does not reach `tolerance`."""
    X = W if W.dtype == torch.float64 else W.float()
    for ritz, residuals in _block_krylov(X, r + max(8, r // 2), generator, DEPTHS[1:]):
        if len(ritz.S) <= r:
            return None
        gap = ritz.S[r - 1] - ritz.S[r] - residuals[r]
        bound = float(residuals[:r].norm() / gap) if gap > 0 else float("inf")
        if bound <= tolerance:
            return _signed(ritz.rows(slice(0, r))), bound
    return None


def from_eigenvectors(W: Tensor, vectors: Tensor, part: slice | list[int]) -> Triplets:
    """Return triplets of W in float64 from eigenvectors of its Gram matrix, residual checked as everywhere here.

    Args:
        W: (m, n).
        vectors: (min(m, n), r), of W W^T or W^T W, whichever is smaller, in descending order of the eigenvalues.
        part: their places among all min(m, n).
    """
    X = W.double()
    if X.shape[0] > X.shape[1]:
        V, S, Uh = _completed(X.mT, vectors)
        return _signed(_checked(X, Triplets(Uh.mT, S, V.mT), part))
    return _signed(_checked(X, _completed(X, vectors), part))


def by_gesdd(W: Tensor, part: slice | list[int]) -> Triplets:
    """Return the triplets of W at the places `part`, in float64, by LAPACK's or the device's own solver."""
    return _signed(_gesdd(W.double()).rows(part))


def residual(W: Tensor, triplets: Triplets) -> float:
    """Return the largest relative residual of the triplets, on four random combinations z of them.

    The residuals are ||W V z - U S z||, ||W^T U z - V S z||, ||U^T U z - z|| and ||V^T V z - z||, relative to ||z||
    and, the first two, to ||W||_F / sqrt(k) (at most sigma_1). They cost O(m n), not a product with all vectors.
    """
    U, S, Vh = triplets
    z = torch.randn(len(S), 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(U)
    Uz, Vz, scale = U @ z, Vh.mT @ z, torch.linalg.norm(W) / min(W.shape) ** 0.5
    pairs = torch.stack([
        torch.linalg.norm(W @ Vz - U @ (S[:, None] * z)),
        torch.linalg.norm(W.mT @ Uz - Vh.mT @ (S[:, None] * z)),
        scale * torch.linalg.norm(U.mT @ Uz - z),
        scale * torch.linalg.norm(Vh @ Vz - z),
    ])  # fmt: skip
    return float(pairs.max() / (scale * torch.linalg.norm(z)).clamp_min(1e-300))


def _checked(X: Tensor, triplets: Triplets, part: slice | list[int] = slice(None)) -> Triplets:
    """Return the triplets if their residual is small enough, else those of gesdd at the places `part`."""
    return triplets if residual(X, triplets) <= TOLERANCE else _gesdd(X).rows(part)


def _gesdd(X: Tensor) -> Triplets:
    try:
        return Triplets(*torch.linalg.svd(X, full_matrices=False))
    except torch.linalg.LinAlgError:  # divide and conquer may fail to converge; QR iteration does not
        from scipy.linalg import svd

        with one_thread():
            parts = svd(X.cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
        return Triplets(*(torch.from_numpy(part).to(X) for part in parts))


def _by_gram_matrix(X: Tensor, first: int | None = None, last: int | None = None) -> Triplets:
    """Return triplets by the smaller of X X^T and X^T X: all, or the `last` largest, then the `first` smallest."""
    if X.shape[0] > X.shape[1]:
        V, S, Uh = _by_gram_matrix(X.mT, first, last)
        return Triplets(Uh.mT, S, V.mT)
    return _completed(X, eigenvectors(X @ X.mT, first, last).flip(1))


def _completed(X: Tensor, U: Tensor) -> Triplets:
    """Return triplets of X, (k, n) with k <= n, from left singular vectors U, (k, r)."""
    Y = U.mT @ X
    S = torch.linalg.vector_norm(Y, dim=1)
    if S[-1] > 1e-6 * torch.linalg.norm(X) / X.shape[0] ** 0.5:
        return Triplets(U, S, Y.div_(S[:, None]))
    V, R = torch.linalg.qr(Y.mT)  # division would leave V non-orthogonal where S is near 0
    diagonal = R.diagonal()
    V = V * torch.where(diagonal < 0, -1.0, 1.0).to(V)
    order = diagonal.abs().argsort(descending=True, stable=True)
    return Triplets(U[:, order], diagonal.abs()[order], V.mT[order])


def _converged_krylov(W: Tensor, r: int) -> Triplets | None:
    """Return the r largest triplets by block Krylov from a fixed start block; None where it does not converge."""
    generator = torch.Generator().manual_seed(0)
    for ritz, residuals in _block_krylov(W, r + 8, generator):
        if float(residuals[:r].max() / ritz.S[0].clamp_min(1e-300)) <= KRYLOV_TOLERANCE:
            return _signed(ritz.rows(slice(0, r)))
    return None


def _block_krylov(
    W: Tensor, width: int, generator: torch.Generator, depths: tuple[int, ...] = DEPTHS
) -> Iterator[tuple[Triplets, Tensor]]:
    """Yield (Ritz triplets, their residuals ||W v - s u||) of growing Krylov bases, while those stay cheap.

    The orthonormal basis Q spans the Krylov blocks X Z, X X^T X Z, ..., X being W or W^T, whichever is wide. Each block
    is orthogonalised twice against all earlier ones. The Ritz triplets are those of Q^T X, in float64.
    """
    X = W if W.shape[0] <= W.shape[1] else W.mT
    k, n = X.shape
    start = torch.randn(n, width, generator=generator, dtype=torch.float64).to(X)
    basis = torch.linalg.qr(X @ start).Q
    for depth in depths:
        if depth * width > k // 2:
            return
        while basis.shape[1] < depth * width:
            block = X @ (X.mT @ basis[:, -width:])
            for _ in range(2):
                block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
            basis = torch.cat([basis, block], dim=1)
        Q = torch.linalg.qr(basis.double()).Q
        C = Q.to(X).mT @ X
        small = _by_gram_matrix(C.double())
        left = Q @ small.U
        residuals = torch.linalg.vector_norm((X @ small.Vh.mT.to(X)).double() - left * small.S, dim=0)
        if X is W:
            yield Triplets(left, small.S, small.Vh), residuals
        else:
            yield Triplets(small.Vh.mT, small.S, left.mT), residuals


def _signed(triplets: Triplets) -> Triplets:
    """Make the largest |entry| of each u positive, in place: singular vectors are unique up to their sign only."""
    U, _, Vh = triplets
    peaks = U.abs().argmax(dim=0)
    signs = torch.where(U.gather(0, peaks[None])[0] < 0, -1.0, 1.0).to(U)
    U.mul_(signs)
    Vh.mul_(signs[:, None])
    return triplets


def finite(W: Tensor, place: str) -> Tensor:
    """Return W.

    Raises:
        UserError: it holds a NaN or an infinity; the line names `place`.
    """
    if not bool(torch.isfinite(W).all()):
        raise UserError(f"{place} holds values that are not finite")
    return W
