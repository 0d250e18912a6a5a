"""A study: rounds of jobs for whatever launcher was chosen, until every table can be drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorax.config import RunConfig, conf_dir, resolve
from lorax.errors import UserError
from lorax.records import Store
from lorax.records.chain import chain_path
from lorax.running.device import processor
from lorax.running.identity import source
from lorax.running.preflight import layer_shapes, layer_targets, load_task, site_plans
from lorax.running.prepared import default_rate, prepare
from lorax.running.sweep import LISTED, JobsFailed, checked, launch, plans, publish, raise_failures

if TYPE_CHECKING:
    from hydra_plugins.lorax.sweeper import LoraxSweeper
    from lorax.studies.jobs import Job
    from lorax.studies.spec import StudySpec

EXECUTION = (
    "results_dir", "track", "device", "cache", "task.path", "model.path",
    "train.eval_batch_size", "train.checkpoint_every", "train.compile", "train.shard", "train.checkpointing",
)  # fmt: skip
"""Keys that say where and how a study is executed; any other override changes its design."""


def run_study(sweeper: LoraxSweeper, arguments: list[str]) -> None:
    """Run, or go on with, the study of the sweeper's configuration; with `study.plan=true` only plan it.

    `study.register=true` fixes the design and begins its chain without a run, so that the registration can be committed
    first; `study.anchor=<commit>` then names that commit.

    Args:
        sweeper: composes configurations and holds the launcher.
        arguments: the command line's overrides.

    Raises:
        UserError: the study's description or a job of it is wrong, or its design was fixed otherwise.
        JobsFailed: jobs failed; what else could be run has been.
    """
    from omegaconf import OmegaConf

    from lorax.running.study_time import seconds_per_run
    from lorax.studies import plan as planning
    from lorax.studies.parse import from_mapping
    from lorax.studies.registration import estimand_of, freeze
    from lorax.tables import draw

    data: Any = OmegaConf.to_container(sweeper.config.study, resolve=True)
    design, execution = _split(sweeper, arguments)
    store = Store(str(sweeper.config.results_dir))
    if data.get("estimand") is None and isinstance(data.get("name"), str):
        data["estimand"] = estimand_of(store.root, data["name"])
    spec = from_mapping(data)
    spec = replace(spec, fixed=spec.fixed | design)
    jobs = _JobFacts(sweeper, execution)
    spec = planning.bind(spec, lr=jobs.rate, count=jobs.trained_values, consumes=jobs.consumed)
    for key in ("plan", "register"):
        if not isinstance(data.get(key, False), bool | None):
            raise UserError(f"study.{key}={data[key]}: must be true or false")
    if data.get("plan"):
        seconds = seconds_per_run(spec, store, sweeper, execution)
        print("\n".join(planning.plan(jobs.with_items(spec), seconds).lines))
        each = one_of_each(spec)
        print("\n".join(plans([f"{job.task} {job.arm}" for job in each], [jobs.config(job.overrides) for job in each])))
        return
    checked(sweeper, [[*job.overrides, *execution] for job in one_of_each(spec)])
    path = freeze(spec, store.root, made_with(), None if data.get("anchor") is None else str(data["anchor"]))
    print("\n".join(planning.plan(jobs.with_items(spec)).lines), flush=True)
    if data.get("register"):
        print(f"registered: commit {path} and {chain_path(store.root, spec.name)}, then run with study.anchor=<commit>")
        return
    _run_rounds(sweeper, spec, store, execution)
    print(draw(store, spec.name))
    publish(store, spec.name, str(sweeper.config.track))


def made_with() -> dict[str, Any]:
    """Return what a registration says of the code and the machine; threads: as asked for, None where torch decides."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return {**source(), "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": threads}}


def _run_rounds(sweeper: LoraxSweeper, spec: StudySpec, store: Store, execution: list[str]) -> None:
    """Launch round after round; what the next one is follows from the records alone."""
    from lorax.studies.rounds import next_round

    store.sweep(spec.name)
    launched: set[tuple[str, ...]] = set()
    printed: set[str] = set()
    started = 0
    while True:
        store.catch_up(spec.name)
        records = store.read(spec.name) if store.folder(spec.name).is_dir() else []
        current = next_round(spec, records)
        _print_new(current.notes, printed)
        if current.kind == "done":
            return
        jobs = [[*job.overrides, *execution] for job in current.jobs]
        without_record = [job for job in jobs if tuple(job) in launched]
        if without_record:
            raise JobsFailed(
                f"{current.kind}: {len(without_record)} jobs left no record: {' '.join(without_record[0])}"
            )
        launched |= {tuple(job) for job in jobs}
        configs = checked(sweeper, jobs)
        print(f"{spec.name}: {current.kind}, {len(jobs)} runs", flush=True)
        results = _one_by_one(configs, jobs) if current.solo else launch(sweeper, jobs, started)
        started += len(jobs)
        raise_failures(results)


def _print_new(notes: Sequence[str], printed: set[str]) -> None:
    """Print the notes that are new; of many stale records only their number and the reasons."""
    new = [note for note in notes if note not in printed]
    printed |= set(new)
    stale = [note for note in new if note.startswith("stale: ")]
    if len(stale) > LISTED:
        reasons = sorted({note.partition("(")[2].rstrip(")") for note in stale})
        new = [f"stale: {len(stale)} records ({'; '.join(reasons)}) are left out", *(n for n in new if n not in stale)]
    for note in new:
        print(f"  {note}")


def _one_by_one(configs: list[RunConfig], jobs: list[list[str]]) -> list[dict[str, Any]]:
    """Run jobs one by one in this process: their seconds and memory are the point."""
    from lorax.running.launch import run_pack

    return [
        {"overrides": job, **run_pack([config], {"launcher": "solo"}, overrides=[job])[0]}
        for config, job in zip(configs, jobs, strict=True)
    ]


def one_of_each(spec: StudySpec) -> list[Job]:
    """Return one job of every arm on every task: they are checked before the design is fixed."""
    from lorax.studies.jobs import make_job

    return [
        make_job(spec, arm.label, task, "final", spec.centre(arm.label, task) if arm.trained else None, spec.seeds[0])
        for task in spec.tasks
        for arm in spec.arms
    ]


def _how_to_copy(sweeper: LoraxSweeper) -> str:
    """Say where the study's YAML lies, and how a changed copy of it is run."""
    path = conf_dir() / "study" / f"{sweeper.config.hydra.runtime.choices.get('study')}.yaml"
    place = path if path.is_file() else "the study's YAML"
    return f"copy {place}, change it and its name, and run study=<the copy>.yaml"


class _JobFacts:
    """What `lorax.studies.plan.bind` asks of a job, from the configuration that the job would get."""

    def __init__(self, sweeper: LoraxSweeper, execution: list[str]):
        self.sweeper, self.execution = sweeper, execution
        self.shapes: dict[str, dict[str, tuple[int, int]]] = {}

    def config(self, overrides: list[str]) -> RunConfig:
        """Return the resolved configuration of a job."""
        config = resolve(self.sweeper.compose([*overrides, *self.execution]))
        if config.parts():
            raise UserError(f"study: task={config.task['name']} is a group of tasks; verdicts are about single tasks")
        return config

    def rate(self, overrides: list[str]) -> float:
        """Return what `lr=null` resolves to: the task's base rate times the method's prior and factor."""
        config = self.config([word for word in overrides if not word.startswith("lr=")])
        prior, factor = default_rate(config, config.initializer())
        return load_task(config).lr * prior * factor

    def trained_values(self, overrides: list[str]) -> int:
        """Return how many values the adapters train, by the method's closed formula."""
        config = self.config(overrides)
        if config.initializer().adapts == "module":
            return sum(plan.count_trainable() for plan in site_plans(config, load_task(config)).values())
        key = repr((config.model, config.task["name"], layer_targets(config), config.rules().given()))
        if key not in self.shapes:
            self.shapes[key] = layer_shapes(config, load_task(config))
        initializer = config.initializer()
        for name, (m, n) in self.shapes[key].items():
            config.rules().at(name, initializer).check(name, m, n)
        return sum(config.rules().at(name, initializer).count(m, n) for name, (m, n) in self.shapes[key].items())

    def with_items(self, spec: StudySpec) -> StudySpec:
        """Return the study with as many validation and test items as its data have, the fewest of its tasks.

        What the YAML says of them is an estimate for a plan without data, and belongs to no design.
        """
        tasks = [load_task(self.config(job.overrides)) for job in one_of_each(spec)]
        return replace(
            spec, test_items=min(len(task.test) for task in tasks),
            validation_items=min(len(task.validation) for task in tasks),
        )  # fmt: skip

    def consumed(self, overrides: list[str]) -> dict[str, Any]:
        """Return what the run consumes, with the digests and versions of now: older records are stale."""
        return prepare(self.config(overrides)).identity


def _split(sweeper: LoraxSweeper, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the overrides that change the study's design, and those of `EXECUTION`."""
    from lorax.studies.parse import OWNED

    design, execution = {}, []
    for override in sweeper.parse(arguments):
        key = override.get_key_element().lstrip("+~")
        if override.is_sweep_override():
            raise UserError(f"{key}: a study sets its own grid; sweep with -m and without study instead")
        if key == "plan":
            raise UserError("plan: a study is planned with study.plan=true")
        if key == "study" or key.startswith("study."):
            continue
        if key in OWNED:
            raise UserError(f"{key}: {OWNED[key]}; {_how_to_copy(sweeper)}")
        if key in EXECUTION:
            execution.append(f"{key}={override.get_value_element_as_str()}")
        else:
            design[key] = override.value()
    return design, execution
