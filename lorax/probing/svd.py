"""Singular triplets of one matrix: exact at either end, or randomised, each with a residual check.

Weights in float32 or less go through their Gram matrix in float64 (1.4 to 6 times faster than gesdd
and, at 576 x 576, 1e6 times more accurate; a Gram in float32 loses the bottom end altogether). float64
weights go through gesdd itself, and so does whatever fails its check.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lorax.errors import UserError
from lorax.probing.symmetric import eigenvectors, one_thread

DENSE = 1024  # up to this min(m, n) the whole spectrum is computed at once
TOLERANCE = 1e-9  # relative residual of the float64 routes
KRYLOV_TOLERANCE = 1e-5  # relative residual of the float32 route
DEPTHS = (3, 4, 6, 9, 12, 16, 24)  # blocks of the Krylov basis at which convergence is looked at; gradients take 3


class Triplets(NamedTuple):
    """U (m, r), S (r,) descending, Vh (r, n)."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def rows(self, part: slice | list[int]) -> Triplets:
        """Return the triplets numbered by `part`."""
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
    return _signed(_checked(X, _gram(X)))


def top(W: Tensor, r: int) -> Triplets:
    """Return the r largest triplets of W: block Krylov where that converges, else the Gram route."""
    if W.dtype == torch.float64 or min(W.shape) <= DENSE:
        return full(W).rows(slice(0, r))
    if 8 * r <= min(W.shape):
        found, residual = _krylov_checked(W, r, KRYLOV_TOLERANCE)
        if residual <= KRYLOV_TOLERANCE:
            return found
    return _signed(_checked(W.double(), _gram(W.double(), last=r), slice(0, r)))


def bottom(W: Tensor, r: int) -> Triplets:
    """Return the r smallest triplets of W in float64, in descending order."""
    k = min(W.shape)
    if W.dtype == torch.float64 or k <= DENSE:
        return full(W).rows(slice(k - r, k))
    return _signed(_checked(W.double(), _gram(W.double(), first=r), slice(k - r, k)))


def ends(W: Tensor, r: int) -> Triplets:
    """Return the r largest and then the r smallest triplets of W in float64, from one decomposition.

    About half the work of `full` where r is at most `few`.
    """
    k = min(W.shape)
    part = [*range(r), *range(k - r, k)]
    if W.dtype == torch.float64:
        return full(W).rows(part)
    X = W.double()
    return _signed(_checked(X, _gram(X, first=r, last=r), part))


def few(k: int) -> int:
    """Return up to how many triplets an end of a k-sided matrix costs clearly less than its whole spectrum."""
    return k // 12


def leading(W: Tensor, r: int) -> Triplets:
    """Return the r largest triplets of a matrix whose spectrum decays, such as a gradient.

    As `top`, but by block Krylov at every size: a gradient's first block holds nearly all its energy.
    """
    if W.dtype == torch.float64 or 4 * r > min(W.shape):
        return full(W).rows(slice(0, r))
    found, residual = _krylov_checked(W, r, KRYLOV_TOLERANCE)
    if residual <= KRYLOV_TOLERANCE:
        return found
    return _signed(_checked(W.double(), _gram(W.double(), last=r), slice(0, r)))


def randomised(W: Tensor, r: int, generator: torch.Generator, tolerance: float = 1e-2) -> tuple[Triplets, float]:
    """Return the r largest triplets by randomised block Krylov, and a bound on the sine of its angle.

    The basis deepens until the bound max(||residual||_F / gap), over U and V, reaches `tolerance` (Wedin;
    the gap uses the Ritz value after r plus its own residual). Where it does not, the exact route answers
    and the bound is 0.

    Args:
        W: (m, n).
        r: how many triplets.
        generator: on the CPU, draws the start block of r + max(8, r / 2) columns.
        tolerance: sine of the largest principal angle to the exact top-r subspaces.

    Source: Musco and Musco, arXiv:1504.05477; oversampling since svd_lowrank with q = r misses the
    subspace of flat weight spectra (sine 0.95 after 16 iterations on real weights).
    """
    width = r + max(8, r // 2)
    X = W if W.dtype == torch.float64 else W.float()
    for ritz, misfit in _krylov(X, width, generator, DEPTHS[1:]):
        if ritz is None or len(ritz.S) <= r:
            break
        gap = ritz.S[r - 1] - ritz.S[r] - misfit[r]
        bound = float(misfit[:r].norm() / gap) if gap > 0 else float("inf")
        if bound <= tolerance:
            return _signed(ritz.rows(slice(0, r))), bound
    return top(W, r), 0.0


def residual(W: Tensor, found: Triplets) -> float:
    """Return the largest relative misfit of the triplets, on four random combinations of them.

    The misfits are ||W V z - U S z||, ||W^T U z - V S z||, and of orthonormality, in units of ||z|| and
    ||W||_F / sqrt(k) (at most sigma_1); they cost O(m n), not a product with all vectors.
    """
    U, S, Vh = found
    z = torch.randn(len(S), 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(U)
    Uz, Vz, scale = U @ z, Vh.mT @ z, torch.linalg.norm(W) / min(W.shape) ** 0.5
    pairs = torch.stack([
        torch.linalg.norm(W @ Vz - U @ (S[:, None] * z)),
        torch.linalg.norm(W.mT @ Uz - Vh.mT @ (S[:, None] * z)),
        scale * torch.linalg.norm(U.mT @ Uz - z),
        scale * torch.linalg.norm(Vh @ Vz - z),
    ])  # fmt: skip
    return float(pairs.max() / (scale * torch.linalg.norm(z)).clamp_min(1e-300))


def _checked(X: Tensor, found: Triplets, part: slice | list[int] = slice(None)) -> Triplets:
    """Return `found` if it passes, else what gesdd says."""
    return found if residual(X, found) <= TOLERANCE else _gesdd(X).rows(part)


def _gesdd(X: Tensor) -> Triplets:
    try:
        return Triplets(*torch.linalg.svd(X, full_matrices=False))
    except torch.linalg.LinAlgError:  # divide and conquer may fail to converge; QR iteration does not
        from scipy.linalg import svd

        with one_thread():
            parts = svd(X.cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
        return Triplets(*(torch.from_numpy(part).to(X) for part in parts))


def _gram(X: Tensor, first: int | None = None, last: int | None = None) -> Triplets:
    """Return triplets from the smaller Gram matrix, descending: all, or the `last` largest and `first` smallest."""
    if X.shape[0] > X.shape[1]:
        V, S, Uh = _gram(X.mT, first, last)
        return Triplets(Uh.mT, S, V.mT)
    U = eigenvectors(X @ X.mT, first, last).flip(1)
    Y = U.mT @ X
    S = torch.linalg.vector_norm(Y, dim=1)
    if S[-1] > 1e-6 * torch.linalg.norm(X) / X.shape[0] ** 0.5:
        return Triplets(U, S, Y.div_(S[:, None]))
    V, R = torch.linalg.qr(Y.mT)  # division would leave V non-orthogonal where S is near 0
    diagonal = R.diagonal()
    V = V * torch.where(diagonal < 0, -1.0, 1.0).to(V)
    order = diagonal.abs().argsort(descending=True, stable=True)
    return Triplets(U[:, order], diagonal.abs()[order], V.mT[order])


def _krylov_checked(W: Tensor, r: int, tolerance: float) -> tuple[Triplets, float]:
    """Return the top r by block Krylov from a fixed start, deepened until the relative residual is met."""
    generator = torch.Generator().manual_seed(0)
    best: tuple[Triplets, float] = (Triplets(W, W, W), float("inf"))
    for ritz, misfit in _krylov(W, r + 8, generator):
        if ritz is None:
            break
        worst = float(misfit[:r].max() / ritz.S[0].clamp_min(1e-300))
        best = _signed(ritz.rows(slice(0, r))), worst
        if worst <= tolerance:
            break
    return best


def _krylov(
    W: Tensor, width: int, generator: torch.Generator, depths: tuple[int, ...] = DEPTHS
) -> Iterator[tuple[Triplets, Tensor] | tuple[None, None]]:
    """Yield (Ritz triplets, misfit ||W v - s u|| of each) at growing depth; (None, None) where it cannot pay.

    The basis Q spans {X Z, X X^T X Z, ...} for the smaller side of W; blocks are orthogonalised twice
    against all earlier ones, and the Ritz triplets are those of Q^T X, taken in float64.
    """
    X = W if W.shape[0] <= W.shape[1] else W.mT
    k, n = X.shape
    start = torch.randn(n, width, generator=generator, dtype=torch.float64).to(X)
    basis = torch.linalg.qr(X @ start).Q
    for depth in depths:
        if depth * width > k // 2:
            yield None, None
            return
        while basis.shape[1] < depth * width:
            block = X @ (X.mT @ basis[:, -width:])
            for _ in range(2):
                block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
            basis = torch.cat([basis, block], dim=1)
        Q = torch.linalg.qr(basis.double()).Q
        C = Q.to(X).mT @ X
        small = _gram(C.double())
        left = Q @ small.U
        misfit = torch.linalg.vector_norm((X @ small.Vh.mT.to(X)).double() - left * small.S, dim=0)
        found = Triplets(left, small.S, small.Vh)
        yield (found if X is W else Triplets(found.Vh.mT, found.S, found.U.mT)), misfit


def _signed(found: Triplets) -> Triplets:
    """Make the largest |entry| of each u positive, in place, so that equal weights give equal vectors."""
    U, _, Vh = found
    peaks = U.abs().argmax(dim=0)
    signs = torch.where(U.gather(0, peaks[None])[0] < 0, -1.0, 1.0).to(U)
    U.mul_(signs)
    Vh.mul_(signs[:, None])
    return found


def finite(W: Tensor, place: str) -> Tensor:
    """Return W.

    Raises:
        UserError: it holds a NaN or an infinity; the line names `place`.
    """
    if not bool(torch.isfinite(W).all()):
        raise UserError(f"{place} holds values that are not finite")
    return W
