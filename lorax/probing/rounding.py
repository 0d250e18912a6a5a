"""What rounding of a stored weight can make of a singular value that was zero.

    W = W* + E,    |E_ij| <= u |W_ij|        u = eps / 2 of the stored dtype: 2^-24, 2^-12 (fp16), 2^-9 (bf16)

By Weyl's inequality no singular value moves by more than ||E||_2, but that bound says too much: of a random matrix of
4096 x 4096 in bf16 it exceeds the smallest 90 singular values, which are real. So it is taken for float32 alone,
where it is tiny; a coarser dtype is judged by all r values together and by where their vectors point.

Sources: Higham, Accuracy and Stability of Numerical Algorithms, 2.2 (u), and Higham and Mary, SIAM J. Sci. Comput. 41
(2019) (rounding errors as independent, of mean zero; here uniform within an ulp, of variance at most (u W_ij)^2 / 3).
Davidson and Szarek (2001), Theorem II.13: an (a, b) matrix of independent entries of variance v^2 has a largest
singular value of about v (sqrt a + sqrt b). Edelman, SIAM J. Matrix Anal. 9 (1988): the smallest one of a square
(k, k) matrix is below x v / sqrt k with probability x, so a single small value proves nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.probing.svd import Triplets

SAFETY = 4.0  # a product of two factors in float32 is off by a few roundings, not by one
FEWEST = 3  # of fewer directions a random matrix has values as small by chance


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return u, the largest relative error of rounding to nearest.

    Examples:
        >>> unit_roundoff(torch.bfloat16) == 2.0**-8
        True
    """
    return torch.finfo(dtype).eps / 2


def zero_level(shape: tuple[int, int], energy: float) -> float:
    """Return the level below which a singular value is a rounding error of float32, whatever a weight is stored in.

        4 u ||W||_F / sqrt(3 m n) (sqrt m + sqrt n)        the largest singular value of E, four times

    Args:
        shape: (m, n).
        energy: ||W||_F^2.
    """
    m, n = shape
    deviation = unit_roundoff(torch.float32) * math.sqrt(energy / (3 * m * n))
    return SAFETY * deviation * (math.sqrt(m) + math.sqrt(n))


def noise_level(W: Tensor, triplets: Triplets, stored: torch.dtype) -> float:
    """Return the largest of the r smallest singular values that rounding alone leaves where W* has r zeros.

        delta (sqrt(r + |m - n|) + sqrt r)        delta^2 = mean over i of  u^2 / 3 sum_ab u_ia^2 W_ab^2 v_ib^2

    delta^2 is the variance of u_i^T E v_i, the first-order change of the value; E acts on the two null spaces as a
    matrix of r by r + |m - n| such entries. 0 where fewer than three directions are judged, or nothing was rounded
    more coarsely than to float32.

    Args:
        W: (m, n), as stored, in float32.
        triplets: the r smallest, values descending.
        stored: the dtype that W was rounded to.
    """
    U, S, Vh = triplets
    r, (m, n) = len(S), W.shape
    if r < FEWEST or torch.finfo(stored).eps <= torch.finfo(torch.float32).eps:
        return 0.0
    W = W.to(U.dtype)
    variance = ((U.square().mT @ W.square()) * Vh.square()).sum() / r
    delta = unit_roundoff(stored) * float((variance / 3).sqrt())
    return delta * (math.sqrt(r + abs(m - n)) + math.sqrt(r))
