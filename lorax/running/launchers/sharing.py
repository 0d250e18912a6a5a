"""Several processes with the same command on one results folder: each takes runs that no other has, none waits idly.

A job of a sweep whose run another process has comes back at once as *claimed*, and the next one is tried. Here the
process waits, once it has nothing else to do: for the other's record, or for its end, which frees what it has left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from lorax.config import RunConfig
from lorax.records import Store, claims

CLAIMED = "claimed"
"""The status of a job whose run another process has."""
_PAUSES = (0.2, 5.0)
"""Seconds between two looks: at first, and at most."""

Result = dict[str, Any]


@dataclass
class _Elsewhere:
    """A run that another process has."""

    store: Store
    name: str
    run_id: str
    failed_before: str | None
    """When it had failed the last time, by its record."""
    lock: BaseFileLock

    def outcome(self) -> Result | None:
        """Return how the other process has ended the run; None: not yet, or it was killed."""
        record = self.store.get(self.name, self.run_id)
        if record is None or (record.status == "failed" and record.provenance.get("finished") == self.failed_before):
            return None
        return {"run_id": self.run_id, "status": record.status, "message": record.error, "scores": record.scores}

    def place(self) -> Path:
        """Return where its lock lies."""
        return self.store.lock_path(self.name, self.run_id)

    def is_free(self) -> bool:
        """Return whether its process has ended without a record."""
        free = claims.is_free(self.lock)
        if free:
            self.lock.release()
        return free


def take_or_await(
    jobs: Sequence[list[str]],
    launch: Callable[[list[list[str]]], list[Result]],
    config_of: Callable[[list[str]], RunConfig],
) -> list[Result]:
    """Launch jobs; of those that other processes have, wait for the records, or take them over.

    Args:
        jobs: each one's overrides.
        launch: hands jobs to the launcher; gives each one's result, in their order.
        config_of: the configuration of a job.

    Returns:
        The result of every job; none is claimed any more.
    """
    results = launch([list(job) for job in jobs])
    others: dict[int, _Elsewhere] = {}
    pause, since, said = _PAUSES[0], time.monotonic(), False
    while others or any(result["status"] == CLAIMED for result in results):
        for place, result in enumerate(results):
            if result["status"] == CLAIMED and place not in others:
                others[place] = _elsewhere(config_of(list(jobs[place])), result)
        free = []
        for place, run in list(others.items()):
            if (outcome := run.outcome()) is not None:
                results[place] = {"overrides": list(jobs[place]), **outcome}
                del others[place]
            elif run.is_free():
                free.append(place)
        if free:
            for place, result in zip(free, launch([list(jobs[place]) for place in free]), strict=True):
                results[place] = result
                del others[place]
            pause, since = _PAUSES[0], time.monotonic()
        elif others:
            if not said and time.monotonic() - since > claims.SAY_AFTER:
                said = True
                whose = claims.said_holder(next(iter(others.values())).place())
                print(f"lorax: waiting for {whose}, which has {len(others)} of the runs", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(1.5 * pause, _PAUSES[1])
    return results


def _elsewhere(config: RunConfig, result: Result) -> _Elsewhere:
    store = Store(config.results_dir)
    lock = claims.lock_of(store.lock_path(config.name, result["run_id"]))
    return _Elsewhere(store, config.name, result["run_id"], result.get("failed_before"), lock)
