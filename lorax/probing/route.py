"""Which algorithm finds the r largest triplets of a large weight, by the device that it lies on.

A CPU keeps `svd.top`. A GPU with fast float64 takes the eigenvectors of the float64 Gram matrix at once: 0.13 s for
4096 x 4096 on an H100, where gesvdj takes 1.1 s, and block Krylov on a flat spectrum ends there after all its steps.
A GPU without iterates in float32 until a bound on the sine of the angle to the exact subspaces says that it is right
(`svd.within_sine`), and takes the Gram matrix where it does not. The choice for GPUs was tested by forcing it on a
CPU; its times for whole models were not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lorax.probing import svd
from lorax.probing.svd import Triplets

SINE = 1e-4  # of the largest principal angle to the exact subspaces
FAST_FLOAT64 = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))  # P100, V100, A100, H100, B200: half of float32's rate or so
WAYS = ("lapack", "gram", "krylov")

_forced: str | None = None


def way_for(device: torch.device) -> str:
    """Return how the largest triplets of a weight on this device are found: lapack, gram or krylov."""
    if _forced is not None:
        return _forced
    if device.type != "cuda":
        return "lapack"
    return "gram" if torch.cuda.get_device_capability(device) in FAST_FLOAT64 else "krylov"


@contextmanager
def forced(way: str) -> Iterator[None]:
    """Take one way on every device for a while."""
    global _forced
    before, _forced = _forced, way
    try:
        yield
    finally:
        _forced = before


def top(W: Tensor, r: int) -> Triplets:
    """Return the r largest triplets of W, signed as `svd.top` signs them.

    Args:
        W: (m, n), with min(m, n) above `svd.DENSE`, or any where a way is forced.
        r: how many.
    """
    way = way_for(W.device)
    if way == "lapack" or W.dtype == torch.float64:
        return svd.top(W, r)
    found = svd.within_sine(W, r, torch.Generator().manual_seed(0), SINE) if way == "krylov" else None
    return svd.top_by_gram_matrix(W, r) if found is None else found[0]
