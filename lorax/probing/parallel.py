"""Layers side by side: small matrices are decomposed on one core each, several at once.

LAPACK's reductions hardly gain from threads on matrices of a few hundred rows. They do on larger ones, which are
decomposed one after the other with all threads. A small layer always gets one core, so its factors do not depend on
how many cores there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import nn

from lorax.adapters.kinds import shape_of, weight_of
from lorax.probing.svd import DENSE
from lorax.probing.symmetric import one_thread

T = TypeVar("T")
MOST = 8  # layers at once; each needs memory for a few float64 copies of its matrix
LARGE = 4096 * DENSE  # a weight of more values gets all threads, however short its smaller side

_worker = threading.local()


def side_by_side(targets: Mapping[str, nn.Module], look: Callable[[str], T]) -> dict[str, T]:
    """Return {layer name: look(name)}, in the order of the targets.

    Args:
        targets: {layer name: module}; only those on the CPU are looked at side by side.
        look: safe to call from several threads at once, for different layers. The caller's torch modes hold in it:
            gradients, inference, autocast.
    """
    small = [name for name, module in targets.items() if _small_on_cpu(module)]
    results = {name: look(name) for name in targets if name not in set(small)}
    if small:
        within, threads = _modes(), torch.get_num_threads()

        def look_at(name: str) -> T:
            with within():
                return look(name)

        with _pool(min(MOST, threads, len(small)), threads) as submit:
            results |= zip(small, submit(look_at, small), strict=True)
    return {name: results[name] for name in targets}


@contextmanager
def all_threads() -> Iterator[None]:
    """Use as many threads as the caller of `side_by_side` had: for work that all layers share and one starts."""
    threads = getattr(_worker, "threads", None)
    if threads is None:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def _small_on_cpu(module: nn.Module) -> bool:
    m, n = shape_of(module)
    return weight_of(module).device.type == "cpu" and min(m, n) <= DENSE and m * n <= LARGE


@contextmanager
def _pool(workers: int, threads: int) -> Iterator[Callable[..., Iterator[T]]]:
    """Start worker threads with one core each; on leaving, torch's and scipy's numbers of threads are as before."""
    started, go = threading.Semaphore(0), threading.Event()

    def begin() -> None:
        torch.get_num_threads()  # a new thread first takes over the process's number; only then can it set its own
        torch.set_num_threads(1)
        _worker.threads = threads
        started.release()
        go.wait()

    def submit(look: Callable[[str], T], names: list[str]) -> Iterator[T]:
        results = pool.map(look, names)  # starts all workers: each waits for `go`, and there is a name for each
        for _ in range(workers):
            started.acquire()
        torch.set_num_threads(threads)  # threads that use torch for the first time from now on take over this number
        go.set()
        return results

    with one_thread():
        pool = ThreadPoolExecutor(workers, "lorax-layer", initializer=begin)
        try:
            yield submit
        finally:
            go.set()  # if an error came before, no worker waits for ever
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _modes() -> Callable[[], ExitStack]:
    """Return a function that enters this thread's torch modes on another thread."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    cast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def within() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(inference))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(torch.autocast("cpu", dtype=dtype, enabled=cast))
        return stack

    return within
