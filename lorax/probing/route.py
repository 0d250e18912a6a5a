"""Which algorithm decomposes a weight, by the device that it lies on.

A CPU keeps LAPACK (`lorax.probing.svd`). A GPU takes the eigenvectors of the float64 Gram matrix, of several layers of
one shape at once: 0.13 s for 4096 x 4096 on an H100, where gesvdj takes 1.1 s, and block Krylov on a flat spectrum ends
there after all its steps. A GPU without fast float64 iterates in float32 for the largest triplets of large weights,
until a bound on the sine of the angle to the exact subspaces says that they are right (`svd.within_sine`), and takes
the Gram matrix where it does not. The choice for GPUs was tested by forcing it on a CPU; its times for whole models
were not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lorax.probing import svd
from lorax.probing.svd import Triplets

SINE = 1e-4  # of the largest principal angle to the exact subspaces
FAST_FLOAT64 = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))  # P100, V100, A100, H100, B200: half of float32's rate or so
WAYS = ("lapack", "gram", "krylov")

Kind = tuple[str, int]
"""What is wanted of a spectrum: (top, bottom or ends, how many of an end) or (full, min(m, n))."""

_forced: str | None = None


def way_for(device: torch.device, what: str = "top", dtype: torch.dtype = torch.float32) -> str:
    """Return how a weight on this device is decomposed: lapack, gram or krylov.

    Args:
        device: of the weight.
        what: top, bottom, ends or full.
        dtype: that the triplets come in; float64 is not squared.
    """
    if dtype == torch.float64 or (_forced is None and device.type != "cuda"):
        return "lapack"
    fast = _forced or ("gram" if torch.cuda.get_device_capability(device) in FAST_FLOAT64 else "krylov")
    return "gram" if fast == "krylov" and what != "top" else fast


@contextmanager
def forced(way: str) -> Iterator[None]:
    """Take one way on every device for a while."""
    global _forced
    before, _forced = _forced, way
    try:
        yield
    finally:
        _forced = before


def decompose(way: str, kind: Kind, weights: Sequence[Callable[[], Tensor]]) -> Iterator[Triplets]:
    """Yield the wanted triplets of each weight, signed as `lorax.probing.svd` signs them.

    Args:
        way: lapack, gram or krylov.
        kind: what is wanted.
        weights: each returns its weight, (m, n), all of one shape on one device; asked twice by the Gram matrices, so
            that one float64 copy is there at a time.
    """
    what, r = kind
    if way == "gram":
        yield from _by_gram_matrices(kind, weights)
        return
    for weight in weights:
        W = weight()
        found = svd.within_sine(W, r, torch.Generator().manual_seed(0), SINE) if way == "krylov" else None
        if found is not None:
            yield found[0]
        elif way == "krylov":
            yield from _by_gram_matrices(kind, [lambda W=W: W])
        elif what == "full":
            yield svd.full(W)
        else:
            yield {"top": svd.top, "bottom": svd.bottom, "ends": svd.ends}[what](W, r)


def _by_gram_matrices(kind: Kind, weights: Sequence[Callable[[], Tensor]]) -> Iterator[Triplets]:
    """Yield triplets from the eigenvectors of the weights' Gram matrices, found together; solved by gesdd if not."""
    grams = torch.stack([_gram(weight().double()) for weight in weights])
    places = _places(kind, grams.shape[-1])
    try:
        vectors = torch.linalg.eigh(grams).eigenvectors
    except torch.linalg.LinAlgError:  # one that does not converge fails them all
        vectors = None
    del grams
    for number, weight in enumerate(weights):
        if vectors is None:
            yield svd.by_gesdd(weight(), places)
        else:
            yield svd.from_eigenvectors(weight(), vectors[number].flip(1)[:, places], places)


def _gram(X: Tensor) -> Tensor:
    return X @ X.mT if X.shape[0] <= X.shape[1] else X.mT @ X


def _places(kind: Kind, k: int) -> list[int]:
    what, r = kind
    first, last = range(r), range(k - r, k)
    return {"top": [*first], "bottom": [*last], "ends": [*first, *last], "full": [*range(k)]}[what]
