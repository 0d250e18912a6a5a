"""How long the runs of a study take: from its cost probes, else from one short trial run."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING

from lorax.records import RunRecord, Store

if TYPE_CHECKING:
    from hydra_plugins.lorax.sweeper import LoraxSweeper
    from lorax.studies.spec import StudySpec


def seconds_per_run(
    spec: StudySpec, store: Store, sweeper: LoraxSweeper, execution: list[str]
) -> dict[str, float] | float | None:
    """Return the seconds of a full run, for the study's plan.

    Args:
        spec: the study.
        store: may hold records of it.
        sweeper: composes the trial's configuration.
        execution: overrides that say where and how the study runs.

    Returns:
        {`task/arm`: seconds} from the cost probes that are there; without any, the seconds of the reference arm
        from a trial; None if the study measures no costs.
    """
    return _from_probes(spec, store) or _from_trial(spec, sweeper, execution)


def _from_probes(spec: StudySpec, store: Store) -> dict[str, float]:
    from lorax.studies.job_index import JobIndex
    from lorax.studies.rounds import cost_jobs

    if not store.folder(spec.name).is_dir():
        return {}
    index, seconds = JobIndex(spec, store.read(spec.name)), {}
    for job in cost_jobs(spec):
        record = index.find(job)
        if record is not None and record.costs.get("step_ms"):
            costs = record.costs
            training = costs["step_ms"] * _full_steps(spec, record) / 1e3
            seconds[f"{job.task}/{job.arm}"] = costs["init_seconds"] + training + costs["eval_seconds"]
    return seconds


def _from_trial(spec: StudySpec, sweeper: LoraxSweeper, execution: list[str]) -> float | None:
    """Return start-up, initialisation, the median step times the steps, and evaluation; the record is thrown away.

    Other arms' initialisation and steps differ; their own cost probes replace this once the study has begun.
    """
    from lorax.running.launch import run_pack
    from lorax.running.sweep import checked
    from lorax.studies.jobs import make_job

    if spec.costs is None:
        return None
    job = make_job(spec, spec.reference, spec.tasks[0], "cost", None, spec.costs.seed)
    with tempfile.TemporaryDirectory() as folder:
        kept = [word for word in execution if not word.startswith(("results_dir=", "track="))]
        start = time.perf_counter()
        run_pack(checked(sweeper, [[*job.overrides, *kept, f"results_dir={folder}", "track=none"]]))
        elapsed = time.perf_counter() - start
        record = Store(folder).read(spec.name)[0]
    costs = record.costs
    if not costs.get("step_ms"):
        return None
    return elapsed - costs["train_seconds"] + costs["step_ms"] * _full_steps(spec, record) / 1e3


def _full_steps(spec: StudySpec, record: RunRecord) -> int:
    """Return the steps of a full run: the study's, else the task's own."""
    from lorax.tasks.registry import load

    return spec.fixed.get("steps") or load(record.config["task"], record.config["data_seed"]).steps
