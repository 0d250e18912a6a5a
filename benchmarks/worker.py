"""A second process that runs an arm: for processes of one thread, and for the memory of a fresh process."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from contextlib import contextmanager
from typing import Any

from benchmarks.harness import Trial

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """A process that holds one arm and runs it on demand.

    Args:
        factory: "module:function"; called in the process with `arguments`, returns the arm.
        threads: threads of the process.
        arguments: picklable keywords of the factory.
    """

    def __init__(self, factory: str, threads: int, **arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        with _environment(dict.fromkeys(THREADS, str(threads))):
            self._process = context.Process(target=_serve, args=(other, factory, threads, arguments), daemon=True)
            self._process.start()
        self.wait()

    def start(self) -> None:
        """Begin one call of the arm."""
        self._pipe.send("run")

    def wait(self) -> Any:
        """Wait for the present call and return what it returned."""
        try:
            done, value = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the worker process ended") from None
        if not done:
            raise RuntimeError(f"worker: {value}")
        return value

    def memory(self) -> tuple[float, float]:
        """Return (peak of the calls, resident before the first call), in MB of 1e6 bytes."""
        self._pipe.send("memory")
        return self.wait()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()


def together(workers: list[Worker]) -> Trial:
    """Run all workers' arms side by side; return the time per step, the runs of all processes counted.

    Args:
        workers: their arms return the `Trial` of a step of one run.
    """
    for worker in workers:
        worker.start()
    trials = [worker.wait() for worker in workers]
    rates = [1 / trial.seconds for trial in trials]  # steps a second, of all the process's runs
    return Trial(1 / sum(rates), sum(trial.cpu for trial in trials) / len(trials))


def _serve(pipe: Any, factory: str, threads: int, arguments: dict[str, Any]) -> None:
    import psutil
    import torch

    from lorax.training.costs import peak_mb, reset_peak

    torch.set_num_threads(threads)
    try:
        module, name = factory.split(":")
        arm = getattr(importlib.import_module(module), name)(**arguments)
        before = psutil.Process().memory_info().rss / 1e6
        reset_peak()
        pipe.send((True, None))
        while True:
            order = pipe.recv()
            pipe.send((True, arm() if order == "run" else (peak_mb(), before)))
    except EOFError:
        return
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))


@contextmanager
def _environment(values: dict[str, str]):
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
