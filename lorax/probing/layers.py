"""Layers side by side: the decomposition of a small matrix keeps one core busy, so every core takes a layer.

LAPACK's reductions of matrices of a few hundred rows hardly gain from threads. A weight whose smaller side is above
`svd.DENSE` does, and is looked at by itself, with all threads. A layer's factors depend on that layer alone, so the
order does not show in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from lorax.probing.svd import DENSE
from lorax.probing.symmetric import one_thread
from lorax.probing.weight import shape_of

T = TypeVar("T")
MOST = 8  # layers at once: each holds a few float64 copies of its matrix


def side_by_side(targets: Mapping[str, nn.Module], look: Callable[[str], T]) -> dict[str, T]:
    """Return {layer name: look(name)}, in the order of the targets.

    The first layer is looked at alone, so that what all layers share (the calibration gradients) is computed with all
    threads. An error is that of the first layer in order that has one.

    Args:
        targets: {layer name: module}; threads are used for those on the CPU.
        look: safe to call from several threads at once, for different layers.
    """
    small = [name for name, module in targets.items() if module.weight.device.type == "cpu" and _small(module)]
    workers = min(MOST, torch.get_num_threads(), len(small) - 1)
    if workers < 2:
        return {name: look(name) for name in targets}
    found = {name: look(name) for name in [small[0], *(name for name in targets if name not in set(small))]}
    with _pool(workers) as pool:
        found |= zip(small[1:], pool.map(look, small[1:]), strict=True)
    return {name: found[name] for name in targets}


def _small(module: nn.Module) -> bool:
    return min(shape_of(module)) <= DENSE


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that use one core each; on leaving, torch's number of threads is as before."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "lorax-layer", initializer=torch.set_num_threads, initargs=(1,))
    try:
        with one_thread():
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
