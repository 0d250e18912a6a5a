"""Layers side by side: the decomposition of a small matrix keeps one core busy, so every core takes a layer.

LAPACK's reductions of matrices of a few hundred rows hardly gain from threads; larger weights do, and are looked at by
themselves, with all threads. A small layer has one core however many there are, so its factors depend on it alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import nn

from lorax.probing.svd import DENSE
from lorax.probing.symmetric import one_thread
from lorax.probing.weight import shape_of

T = TypeVar("T")
MOST = 8  # layers at once: each holds a few float64 copies of its matrix
LARGE = 4096 * DENSE  # values of a weight that has all threads to itself, whatever its smaller side

_worker = threading.local()


def side_by_side(targets: Mapping[str, nn.Module], look: Callable[[str], T]) -> dict[str, T]:
    """Return {layer name: look(name)}, in the order of the targets.

    Args:
        targets: {layer name: module}; threads are used for those on the CPU.
        look: safe to call from several threads at once, for different layers. It meets the caller's modes: gradients,
            inference, autocast.
    """
    small = [name for name, module in targets.items() if module.weight.device.type == "cpu" and _small(module)]
    found = {name: look(name) for name in targets if name not in set(small)}
    if small:
        within, threads = _modes(), torch.get_num_threads()

        def one(name: str) -> T:
            with within():
                return look(name)

        with _pool(min(MOST, threads, len(small)), threads) as submit:
            found |= zip(small, submit(one, small), strict=True)
    return {name: found[name] for name in targets}


@contextmanager
def all_threads() -> Iterator[None]:
    """Use as many threads as the caller of `side_by_side` had: for what layers share, computed by whoever needs it."""
    threads = getattr(_worker, "threads", None)
    if threads is None:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def _small(module: nn.Module) -> bool:
    return min(shape_of(module)) <= DENSE and module.weight.numel() <= LARGE


@contextmanager
def _pool(workers: int, threads: int) -> Iterator[Callable[..., Iterator[T]]]:
    """Threads that use one core each; on leaving, torch's and scipy's numbers of threads are as before."""
    started, go = threading.Semaphore(0), threading.Event()

    def begin() -> None:
        torch.get_num_threads()  # a thread takes the process's number when it first asks; its own comes after that
        torch.set_num_threads(1)
        _worker.threads = threads
        started.release()
        go.wait()

    def submit(look: Callable[[str], T], names: list[str]) -> Iterator[T]:
        results = pool.map(look, names)  # starts all workers: none is idle before `go`, and there are names enough
        for _ in range(workers):
            started.acquire()
        torch.set_num_threads(threads)  # a thread that first meets torch from now on takes this number
        go.set()
        return results

    with one_thread():
        pool = ThreadPoolExecutor(workers, "lorax-layer", initializer=begin)
        try:
            yield submit
        finally:
            go.set()  # where something came in between, nobody waits for ever
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _modes() -> Callable[[], ExitStack]:
    """Return what makes a context of this thread's modes on another thread."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    cast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def within() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(inference))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(torch.autocast("cpu", dtype=dtype, enabled=cast))
        return stack

    return within
