"""A multirun: all jobs are checked first, equal ones run once, the table is drawn last. Torch-free until jobs run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.config import RunConfig, resolve
from lorax.errors import UserError
from lorax.records import Store, Unwritable, canonical
from lorax.running.identity import consumed_fields
from lorax.running.launchers.cluster import cancelled_on_stop, finished_before, is_cluster
from lorax.running.launchers.sharing import take_or_await
from lorax.running.messages import one_line
from lorax.running.prepared import default_rate

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

    from hydra_plugins.lorax.sweeper import LoraxSweeper

LISTED = 5
"""Most failed jobs, or stale records, that a message lists one by one."""


class JobsFailed(Exception):
    """Some jobs of a sweep failed; the others are recorded. Exit status 1."""


def run_grid(sweeper: LoraxSweeper, arguments: list[str]) -> list[Any]:
    """Run the product of all swept values with the chosen launcher, then draw the table.

    Raises:
        UserError: a job's configuration is wrong; nothing has been started.
        JobsFailed: jobs failed while running.
    """
    jobs = sweeper.expand(arguments)
    configs = checked(sweeper, jobs)
    jobs, configs, twins = without_twins(jobs, configs)
    if any(config.plan for config in configs):
        print("\n".join(plans([" ".join(job) for job in jobs], configs)))
        return []
    if twins:
        print(f"{twins} job(s) differ only in what their method ignores: run once")
    results = launch(sweeper, jobs, 0)
    try:
        _show_tables(configs)
    except UserError:
        raise_failures(results)  # the earlier error, and the cause of this one
        raise
    raise_failures(results)
    return results


def plans(names: Sequence[str], configs: Sequence[RunConfig]) -> list[str]:
    """Return what each job takes in memory, as lines; jobs that take the same are named together."""
    from lorax.running.memory_plan import memory_plan

    same: dict[str, list[str]] = {}
    for name, config in zip(names, configs, strict=True):
        same.setdefault("\n".join(memory_plan(config).lines()), []).append(name)
    return [
        f"{'; '.join(jobs[:LISTED])}{' and others' if jobs[LISTED:] else ''}\n{text}" for text, jobs in same.items()
    ]


def _show_tables(configs: Sequence[RunConfig]) -> None:
    """Draw the table of every name in a grid, and log it."""
    names = list(dict.fromkeys((config.results_dir, config.name) for config in configs))
    for results_dir, name in names:
        show_table(Store(results_dir), name)
        publish(Store(results_dir), name, configs[0].track)


def checked(sweeper: LoraxSweeper, jobs: Sequence[list[str]]) -> list[RunConfig]:
    """Resolve and preflight every job; the first wrong one is named with its overrides."""
    from lorax.running.memory_plan import check_memory
    from lorax.running.preflight import preflight

    configs = []
    for job in jobs:
        try:
            configs.append(resolve(sweeper.compose(job)))
        except UserError as error:
            raise UserError(f"{error} (in job {' '.join(job)})" if len(jobs) > 1 else str(error)) from None
    preflight(configs)
    check_memory(configs)
    return configs


def without_twins(
    jobs: Sequence[list[str]], configs: Sequence[RunConfig]
) -> tuple[list[list[str]], list[RunConfig], int]:
    """Keep the first of the jobs that consume the same fields, such as SVFT at two ranks.

    Returns:
        Their overrides, their configurations, and how many jobs were left out.
    """
    first: dict[str, int] = {}
    for index, config in enumerate(configs):
        initializer = config.initializer()
        fields = consumed_fields(config, initializer)
        # Resolved only when the run starts, yet part of its id: the default rate, and a device's precision.
        rate = default_rate(config, initializer) if "lr" in fields and config.lr is None else None
        device = config.device if config.dtype == "auto" else None
        key = canonical([fields, rate, device, config.name, config.results_dir])
        first.setdefault(key, index)
    kept = sorted(first.values())
    return [jobs[i] for i in kept], [configs[i] for i in kept], len(jobs) - len(kept)


def launch(sweeper: LoraxSweeper, jobs: Sequence[list[str]], start: int) -> list[dict[str, Any]]:
    """Hand jobs to the launcher; return each one's overrides, status, run_id and message.

    Runs that other processes have are left to them, and waited for when all others are done.
    """
    if not jobs:
        return []

    def hand_over(part: list[list[str]]) -> list[dict[str, Any]]:
        if is_cluster(sweeper.config):
            return _launch_on_cluster(sweeper, part, start)
        return _read(part, sweeper.launcher.launch(part, initial_job_idx=start))

    return take_or_await(jobs, hand_over, lambda job: resolve(sweeper.compose(job)))


def _launch_on_cluster(sweeper: LoraxSweeper, jobs: Sequence[list[str]], start: int) -> list[dict[str, Any]]:
    """Submit the jobs without a finished record; take what is queued out of the queue again when stopped."""
    known = finished_before([resolve(sweeper.compose(list(job))) for job in jobs])
    if known:
        print(f"{len(known)} of {len(jobs)} jobs finished before: not submitted", flush=True)
    left = [list(job) for place, job in enumerate(jobs) if place not in known]
    done: list[dict[str, Any]] = []
    if left:
        with cancelled_on_stop(sweeper.config):
            done = _read(left, sweeper.launcher.launch(left, initial_job_idx=start))
    fresh = iter(done)
    return [{"overrides": list(job), **known[at]} if at in known else next(fresh) for at, job in enumerate(jobs)]


def _read(jobs: Sequence[list[str]], returns: Sequence[JobReturn]) -> list[dict[str, Any]]:
    """Return the results that a launcher hands back, failures among them."""
    results = []
    for job, done in zip(jobs, returns, strict=True):
        value = done._return_value  # the property would print and raise at the first failure
        if isinstance(value, Unwritable):
            raise value  # the table could not be written either; the same command resumes here
        if isinstance(value, BaseException):
            value = {"status": "failed", "message": one_line(value), "run_id": None}
        results.append({"overrides": list(job), **(value or {})})
    return results


def raise_failures(results: Sequence[dict[str, Any]]) -> None:
    """Raise if any job failed, with a line for each; a message that all share is given once."""
    failed = [result for result in results if result.get("status") == "failed"]
    reasons = {result.get("message") for result in failed}
    if len(failed) > 1 and len(reasons) == 1:
        raise JobsFailed(f"{len(failed)} of {len(results)} jobs failed, all with: {reasons.pop()}")
    if failed:
        lines = [f"  {' '.join(result['overrides'])}: {result.get('message')}" for result in failed[:LISTED]]
        if failed[LISTED:]:
            lines.append(f"  and {len(failed) - LISTED} more, each in its record")
        raise JobsFailed(f"{len(failed)} of {len(results)} jobs failed:\n" + "\n".join(lines))


def show_table(store: Store, name: str) -> None:
    """Write and print the comparison table of `name`."""
    from lorax.reports.write import write_table

    text, paths = write_table(store, name)
    print("\n" + text + "\n" + "table: " + ", ".join(str(path) for path in paths))


def publish(store: Store, name: str, track: str) -> None:
    """Log table and figures of `name` as one more run of its W&B group."""
    from lorax.training.tracking import Tracker, effective_mode

    if effective_mode(track, os.environ) == "none":
        return
    from lorax.reports.study import wandb_payload

    payload = wandb_payload(store, name)
    folder = Path("outputs") / name / "comparison"
    with Tracker(folder, {"name": name}, mode=track, name=f"{name}-table", group=name, tags=["table"]) as tracker:
        tracker.table("comparison", payload["rows"])
        tracker.images(payload["figures"])
