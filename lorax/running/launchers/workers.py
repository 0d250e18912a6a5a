"""Packs side by side in worker processes: one is lost, its pack is halved and goes on; the parent is lost, they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from lorax.errors import one_line
from lorax.records import Unwritable

if TYPE_CHECKING:
    from lorax.config import RunConfig

Result = dict[str, Any]
Train = Callable[[list["RunConfig"], list[list[str]]], list[Result]]
_CHECK_SECONDS = 0.5
_ATTEMPTS = 2
"""Times that a single run is tried whose worker is killed."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class Work:
    """A pack that is still to be trained."""

    configs: list[RunConfig]
    overrides: list[list[str]]
    places: list[int]
    """Where each run's result goes."""
    attempt: int = 1

    def smaller(self) -> list[Work]:
        """Return what is tried when a worker has died on it: two halves; a single run once more, then nothing."""
        if len(self.configs) == 1:
            again = Work(self.configs, self.overrides, self.places, self.attempt + 1)
            return [again] if self.attempt < _ATTEMPTS else []
        half = (len(self.configs) + 1) // 2
        parts = (slice(0, half), slice(half, None))
        return [Work(self.configs[part], self.overrides[part], self.places[part]) for part in parts]


@dataclass
class _Worker:
    process: Any
    """A spawned process."""
    connection: Connection
    seat: int
    """Its place among the workers: says which of `pins` it has, as its successor will, should it be killed."""
    work: Work | None = field(default=None)


def train_packs(
    packs: Sequence[tuple[list[RunConfig], list[list[str]]]],
    processes: int,
    train: Train,
    pins: Sequence[Mapping[str, str]] = ({},),
) -> list[Result]:
    """Train packs in worker processes, each with its share of the cores.

    Args:
        packs: configurations that share a base, and each one's overrides.
        processes: packs that train side by side.
        train: trains one pack; a function of a module, since workers import it.
        pins: variables of the environment that workers start with, in turn: each one's card.

    Returns:
        One result for each run, in the order of the packs and of the runs in them.

    Raises:
        Unwritable: a worker could not write its records; the others are ended.
    """
    results: list[Result] = []
    waiting: deque[Work] = deque()
    for configs, overrides in packs:
        places = list(range(len(results), len(results) + len(configs)))
        waiting.append(Work(list(configs), list(overrides), places))
        results += [{"status": "failed", "message": "not started", "run_id": None} for _ in configs]
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.work for worker in workers):
            idle = [worker for worker in workers if worker.work is None]
            while waiting and (idle or len(workers) < processes):
                if not idle:
                    seat = min(set(range(processes)) - {worker.seat for worker in workers})
                    workers.append(_start(processes, train, seat, pins[seat % len(pins)]))
                    idle.append(workers[-1])
                _hand_over(idle.pop(), waiting.popleft())
            busy = {worker.connection: worker for worker in workers if worker.work}
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]
                work, answer = worker.work, _answer(worker)
                worker.work = None
                assert work is not None  # only busy workers are waited for
                if answer is None:
                    workers.remove(worker)
                    waiting.extendleft(reversed(_after_death(worker, work, results)))
                else:
                    for place, result in zip(work.places, answer, strict=True):
                        results[place] = result
    finally:
        _end(workers)
    return results


def _hand_over(worker: _Worker, work: Work) -> None:
    worker.work = work
    try:
        worker.connection.send((work.configs, work.overrides))
    except OSError:  # it is dead already: reading its answer will say so
        pass


def _answer(worker: _Worker) -> list[Result] | None:
    """Return the results of a pack; None if its worker has died."""
    try:
        kind, value = worker.connection.recv()
    except (EOFError, OSError):
        return None
    if kind == "unwritable":
        raise Unwritable(value)
    assert worker.work is not None  # it answers about a pack
    return (
        value if kind == "done" else [{"status": "failed", "message": value, "run_id": None}] * len(worker.work.places)
    )


def _after_death(worker: _Worker, work: Work, results: list[Result]) -> list[Work]:
    """Say in one line what happened to a worker, and return what is tried instead."""
    worker.process.join()
    code = worker.process.exitcode
    how = f"was killed (signal {-code}, most often for want of memory)" if code < 0 else f"ended with exit code {code}"
    smaller, runs = work.smaller(), len(work.places)
    if not smaller:
        for place in work.places:
            results[place] = {"status": "failed", "message": f"its worker {how}", "run_id": None}
        return []
    sizes = " and ".join(str(len(part.places)) for part in smaller)
    more = f"its pack of {runs} goes on in packs of {sizes}" if runs > 1 else "its run is tried once more"
    print(f"lorax: a worker {how}: {more}; what has finished is kept", file=sys.stderr, flush=True)
    return smaller


def _start(processes: int, train: Train, seat: int, pin: Mapping[str, str]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, train, os.getpid()), name="lorax-worker")
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with environment_of_workers({name: threads for name in _THREADS if name not in os.environ} | dict(pin)):
        process.start()
    theirs.close()  # so that the end of the worker ends the pipe
    return _Worker(process, ours, seat)


@contextmanager
def environment_of_workers(variables: Mapping[str, str]) -> Iterator[None]:
    """Let processes that are started inside begin with these variables; afterwards all are as they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()  # an idle worker ends by itself
        if worker.work is not None:
            worker.process.terminate()
    for worker in workers:
        worker.process.join(5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(connection: Connection, train: Train, parent: int) -> None:
    """Train what comes through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    end_with(parent)
    while True:
        try:
            configs, overrides = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = ("done", train(configs, overrides))
        except Unwritable as error:
            answer = ("unwritable", str(error))
        except Exception as error:
            answer = ("failed", one_line(error))
        connection.send(answer)


@cache
def end_with(parent: int) -> None:
    """End this process within a second of its parent's end, however that one ends: a killed one tells nobody.

    Args:
        parent: its process id.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="end with the parent", daemon=True).start()
