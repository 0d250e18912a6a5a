"""The queue of a cluster (SLURM through submitit): finished runs stay out of it, stopped ones do not stay in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.config import RunConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

_DTYPES = ("float32", "bf16-autocast")
"""What `dtype=auto` may become on a node of the cluster, which this machine does not know."""


def is_cluster(config: DictConfig) -> bool:
    """Return whether the chosen launcher hands jobs to a cluster's queue."""
    launcher = config.hydra.launcher
    return "submitit" in str(launcher.get("_target_", "")) if hasattr(launcher, "get") else False


def name_jobs(config: DictConfig, name: str) -> None:
    """Call the queue's jobs after the study or the sweep, and keep their files under `outputs` with its others.

    What the user has set stays.
    """
    from omegaconf import open_dict

    with open_dict(config):
        config.hydra.job.name = name
        launcher = config.hydra.launcher
        if is_cluster(config) and str(launcher.get("submitit_folder", "")).endswith("/.submitit/%j"):
            folder = str(launcher.submitit_folder)
            if Path(folder) == Path(".submitit/%j"):
                launcher.submitit_folder = f"outputs/{name}/.submitit/%j"


def finished_before(configs: Sequence[RunConfig]) -> dict[int, dict[str, Any]]:
    """Return place -> result of the runs that have a finished record: they need no place in the queue."""
    from lorax.running.prepared import prepare

    found: dict[int, dict[str, Any]] = {}
    for place, config in enumerate(configs):
        for dtype in _DTYPES if config.dtype == "auto" else (config.dtype,):
            run = prepare(replace(config, dtype=dtype))
            if run.has_finished():
                record = run.stored()
                found[place] = {
                    "run_id": run.run_id,
                    "status": record.status if record else "finished",
                    "message": None,
                }
    return found


@contextmanager
def cancelled_on_stop(config: DictConfig) -> Iterator[None]:
    """Cancel the jobs that were submitted inside, if this process is stopped before they are over."""
    folder = Path(str(config.hydra.launcher.submitit_folder)).parent
    before = _job_ids(folder)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        _cancel(_job_ids(folder) - before)
        raise


def _job_ids(folder: Path) -> set[str]:
    """Return the ids of the arrays that have a folder: submitit makes `<id>_<task>` when it submits."""
    return {path.name.partition("_")[0] for path in folder.glob("*") if path.name[:1].isdigit()}


def _cancel(ids: set[str]) -> None:
    command = shutil.which("scancel")
    if not ids or command is None:
        return
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run([command, *sorted(ids)], timeout=60, check=False)
        print(f"cancelled in the queue: {', '.join(sorted(ids))}", file=sys.stderr, flush=True)
