"""Eigenvectors of a symmetric matrix, all or those at both ends of the spectrum, by one tridiagonal reduction.

    G = Q T Q^T,   T z = t z for the wanted eigenvalues t only,   u = Q z

A solver for the whole spectrum spends three fifths of its time on vectors. LAPACK's drivers for a part of the spectrum
take one end at a time and would reduce G twice.

scipy's BLAS has threads of its own, which keep a core busy for a while after each call. Together with torch's
threads, on two cores, that made 210 gradients of SmolLM2 take 27 s instead of 3. So scipy gets one thread here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorax.probing.lapack import call

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

LARGE = 1024  # above this order a reduction gains from several threads, and takes longer than they stay awake
SMALL = 256  # below this order the whole spectrum costs no more than its ends

_lock = threading.Lock()
_inside = 0  # how many callers are in `one_thread` now
_limit: Any = None  # gives the BLAS its threads back when the last of them leaves


def eigenvectors(G: Tensor, first: int | None = None, last: int | None = None) -> Tensor:
    """Return eigenvectors as columns in ascending order of the eigenvalues: all, or the `first` and the `last` ones.

    Args:
        G: (k, k) float64, symmetric; only one triangle is read.
        first: how many of the smallest eigenvalues.
        last: how many of the largest; all eigenvectors where both are None.
    """
    if first is None and last is None:
        return torch.linalg.eigh(G).eigenvectors
    k = len(G)
    wanted = [*range(first or 0), *range(k - (last or 0), k)]
    vectors = None if G.is_cuda or k < SMALL else _by_tridiagonal_form(G, wanted)
    return torch.linalg.eigh(G).eigenvectors[:, wanted] if vectors is None else vectors


@contextmanager
def one_thread() -> Iterator[None]:
    """Let numpy's and scipy's BLAS use one thread while any caller is inside; torch keeps its own threads."""
    global _inside, _limit
    with _lock:
        if not _inside:
            _limit = _pools().limit(limits=1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _limit.restore_original_limits()


@cache
def _pools() -> ThreadpoolController:
    import scipy.linalg.lapack  # noqa: F401  (a pool is found only once its library is loaded)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(internal_api="openblas")


def _by_tridiagonal_form(G: Tensor, wanted: list[int]) -> Tensor | None:
    """Return the wanted eigenvectors, or None where a LAPACK routine reports a failure; callers check residuals."""
    with one_thread() if len(G) <= LARGE else nullcontext():
        return _reduce_and_solve(G, wanted)


def _reduce_and_solve(G: Tensor, wanted: list[int]) -> Tensor | None:
    import numpy as np

    k, count = len(G), len(wanted)
    reduced = G.numpy().copy().T  # stored by columns, as LAPACK expects; G is symmetric
    diagonal, off, tau, work = np.empty(k), np.empty(k - 1), np.empty(k - 1), np.empty(64 * k)
    if call("dsytrd", b"L", k, reduced, k, diagonal, off, tau, work, len(work)):
        return None
    values = diagonal.copy()
    if call("dsterf", k, values, off.copy()):
        return None
    block, end = np.ones(k, np.int32), np.full(k, k, np.int32)  # T is one block, also where it could be split
    z, integers, failed = np.empty((count, k)), np.empty(k, np.int32), np.empty(count, np.int32)
    if call("dstein", k, diagonal, off, count, values[wanted], block, end, z, k, work, integers, failed):
        return None
    if call("dormtr", b"L", b"L", b"N", k, count, reduced, k, tau, z, k, work, len(work)):
        return None
    return torch.from_numpy(z).mT
