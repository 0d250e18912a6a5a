"""A study: rounds of jobs for whatever launcher was chosen, until every table can be drawn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lorax.config import RunConfig, resolve
from lorax.errors import UserError
from lorax.records import Store
from lorax.running.preflight import layer_shapes, load_task
from lorax.running.prepared import default_rate, prepare
from lorax.running.sweep import LISTED, JobsFailed, checked, launch, publish, raise_failures

OUTSIDE = (
    "results_dir", "track", "device", "cache", "task.path", "model.path",
    "train.eval_batch_size", "train.checkpoint_every",
)  # fmt: skip
"""Keys that say where and how a study runs; any other override changes its design."""


def run_study(sweeper: Any, arguments: list[str]) -> None:
    """Run, or go on with, the study of the sweeper's configuration; with `study.plan=true` only plan it.

    Args:
        sweeper: composes configurations and holds the launcher.
        arguments: the command line's overrides.

    Raises:
        UserError: the study's description or a job of it is wrong, or its design was fixed otherwise.
        JobsFailed: jobs failed; what else could be run has been.
    """
    from omegaconf import OmegaConf

    from lorax.studies import plan as planning
    from lorax.studies.registration import freeze
    from lorax.studies.spec import from_mapping

    data = OmegaConf.to_container(sweeper.config.study, resolve=True)
    design, outside = _split(sweeper, arguments)
    spec = from_mapping(data)
    spec = replace(spec, fixed=spec.fixed | design)
    compose = _Composer(sweeper, outside)
    spec = planning.bind(spec, lr=compose.rate, count=compose.count, consumes=compose.consumes)
    store = Store(str(sweeper.config.results_dir))
    if data.get("plan"):
        seconds = _seconds(store, spec) or _probe(sweeper, spec, outside)
        print("\n".join(planning.plan(spec, seconds).lines))
        return
    checked(sweeper, [[*job.overrides, *outside] for job in one_of_each(spec)])
    freeze(spec, store.root)
    print("\n".join(planning.plan(spec).lines), flush=True)
    _rounds(sweeper, spec, store, outside)
    _report(store, spec.name)
    publish(store, spec.name, str(sweeper.config.track))


def _rounds(sweeper: Any, spec: Any, store: Store, outside: list[str]) -> None:
    from lorax.studies.rounds import next_round

    started, asked, told = 0, set(), set()
    while True:
        records = store.read(spec.name) if store.folder(spec.name).is_dir() else []
        this = next_round(spec, records)
        _tell(this.notes, told)
        if this.kind == "done":
            return
        jobs = [[*job.overrides, *outside] for job in this.jobs]
        again = [job for job in jobs if tuple(job) in asked]
        if again:
            raise JobsFailed(f"{this.kind}: {len(again)} jobs left no record: {' '.join(again[0])}")
        asked |= {tuple(job) for job in jobs}
        configs = checked(sweeper, jobs)
        print(f"{spec.name}: {this.kind}, {len(jobs)} runs", flush=True)
        results = _solo(configs, jobs) if this.solo else launch(sweeper, jobs, started)
        started += len(jobs)
        raise_failures(results)


def _tell(notes: Sequence[str], told: set[str]) -> None:
    """Print what is new; of many stale records their number and the reasons."""
    new = [note for note in notes if note not in told]
    told |= set(new)
    stale = [note for note in new if note.startswith("stale: ")]
    if len(stale) > LISTED:
        reasons = sorted({note.partition("(")[2].rstrip(")") for note in stale})
        new = [f"stale: {len(stale)} records ({'; '.join(reasons)}) are left out", *(n for n in new if n not in stale)]
    for note in new:
        print(f"  {note}")


def _solo(configs: list[RunConfig], jobs: list[list[str]]) -> list[dict[str, Any]]:
    """Run jobs one by one in this process: their seconds and memory are the point."""
    from lorax.running.launch import run_pack

    return [
        {"overrides": job, **run_pack([config], {"launcher": "solo"}, overrides=[job])[0]}
        for config, job in zip(configs, jobs, strict=True)
    ]


def one_of_each(spec: Any) -> list[Any]:
    """Return a job for every arm on every task: whatever is wrong with one shows before the design is fixed."""
    from lorax.studies.jobs import make_job

    return [
        make_job(spec, arm.label, task, "final", spec.centre(arm.label, task) if arm.trained else None, spec.seeds[0])
        for task in spec.tasks
        for arm in spec.arms
    ]


class _Composer:
    """Answers the protocol's questions about a job from the configuration it would get."""

    def __init__(self, sweeper: Any, outside: list[str]):
        self.sweeper, self.outside = sweeper, outside
        self.shapes: dict[str, dict[str, tuple[int, int]]] = {}

    def config(self, overrides: list[str]) -> RunConfig:
        """Return the resolved configuration of a job."""
        return resolve(self.sweeper.compose([*overrides, *self.outside]))

    def rate(self, overrides: list[str]) -> float:
        """Return what `lr=null` resolves to: the task's base rate times the method's prior."""
        config = self.config([word for word in overrides if not word.startswith("lr=")])
        prior, factor = default_rate(config, config.initializer())
        return load_task(config).lr * prior * factor

    def count(self, overrides: list[str]) -> int:
        """Return the trainable parameters of the adapters, by the method's closed formula."""
        config = self.config(overrides)
        key = repr((config.model, config.task["name"], config.targets))
        if key not in self.shapes:
            self.shapes[key] = layer_shapes(config, load_task(config))
        initializer = config.initializer()
        total = 0
        for name, (m, n) in self.shapes[key].items():
            initializer.check(name, m, n)
            total += initializer.count(m, n)
        return total

    def consumes(self, overrides: list[str]) -> dict[str, Any]:
        """Return what the run consumes, with the digests and versions of now: older records are stale."""
        return prepare(self.config(overrides)).identity


def _split(sweeper: Any, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Part the command line into changes of the design and words about where it runs."""
    from lorax.studies.spec import OWNED

    design, outside = {}, []
    for override in sweeper.parse(arguments):
        key = override.get_key_element().lstrip("+~")
        if override.is_sweep_override():
            raise UserError(f"{key}: a study sets its own grid; sweep with -m and without study instead")
        if key == "study" or key.startswith("study."):
            continue
        if key in OWNED:
            raise UserError(f"{key}: {OWNED[key]}; copy the study's YAML to change it")
        if key in OUTSIDE:
            outside.append(f"{key}={override.get_value_element_as_str()}")
        else:
            design[key] = override.value()
    return design, outside


def _seconds(store: Store, spec: Any) -> dict[str, float] | None:
    """Return seconds a full run by `task/arm`, from the cost probes that are there."""
    if not store.folder(spec.name).is_dir():
        return None
    from lorax.studies.job_index import Book

    book, found = Book(spec, store.read(spec.name)), {}
    from lorax.studies.rounds import cost_jobs

    for job in cost_jobs(spec):
        record = book.look(job)
        if record is not None and record.costs.get("step_ms"):
            steps = spec.fixed.get("steps") or load_steps(record)
            costs = record.costs
            found[f"{job.task}/{job.arm}"] = (
                costs["step_ms"] * steps / 1e3 + costs["init_seconds"] + costs["eval_seconds"]
            )
    return found or None


def _probe(sweeper: Any, spec: Any, outside: list[str]) -> float | None:
    """Return seconds of a full run, from a short one of the reference arm whose record is thrown away.

    Counts start-up, initialisation, the median step times the steps, and the evaluation. Other arms'
    initialisation and steps differ; their own cost probes replace this once the study has begun.
    """
    from lorax.running.launch import run_pack
    from lorax.studies.jobs import make_job

    if spec.costs is None:
        return None
    job = make_job(spec, spec.reference, spec.tasks[0], "cost", None, spec.costs.seed)
    with tempfile.TemporaryDirectory() as folder:
        words = [word for word in outside if not word.startswith(("results_dir=", "track="))]
        overrides = [*job.overrides, *words, f"results_dir={folder}", "track=none"]
        start = time.perf_counter()
        run_pack(checked(sweeper, [overrides]))
        elapsed = time.perf_counter() - start
        record = Store(folder).read(spec.name)[0]
    steps = spec.fixed.get("steps") or load_steps(record)
    if not record.costs.get("step_ms"):
        return None
    return elapsed - record.costs["train_seconds"] + record.costs["step_ms"] * steps / 1e3


def load_steps(record: Any) -> int:
    """Return the steps of a full run, where the study leaves them to the task."""
    from lorax.tasks.registry import load

    return load(record.config["task"], record.config["data_seed"]).steps


def _report(store: Store, name: str) -> None:
    from lorax.tables import draw

    print(draw(store, name))
