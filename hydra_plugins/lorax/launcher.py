"""`hydra/launcher=packed`: jobs that share a model, a task and a batch shape train in packs, on one frozen base."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from lorax.config import RunConfig


@dataclass
class PackedLauncherConf:
    """`lanes`: most runs in a pack (null: as many as fit into memory); `processes`: packs that train side by side."""

    _target_: str = "hydra_plugins.lorax.launcher.PackedLauncher"
    lanes: int | None = None
    processes: int = 1


ConfigStore.instance().store(group="hydra/launcher", name="packed", node=PackedLauncherConf, provider="lorax")


class PackedLauncher(Launcher):
    """Groups jobs into packs and runs each pack as one training loop; records are those of single runs."""

    def __init__(self, lanes: int | None = None, processes: int = 1):
        from lorax.errors import UserError

        for key, value in (("lanes", lanes), ("processes", processes)):
            if value is not None and value < 1:
                raise UserError(f"hydra.launcher.{key}={value}: must be at least 1")
        self.lanes, self.processes = lanes, processes

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run all jobs; results in the order of `job_overrides`."""
        from lorax.config import resolve
        from lorax.running.packing import make_packs

        load = self.hydra_context.config_loader.load_sweep_config
        configs = [resolve(load(self.config, list(job))) for job in job_overrides]
        packs = make_packs(configs, self.lanes)
        print(f"{len(configs)} jobs in {len(packs)} packs of {', '.join(str(len(pack)) for pack in packs)}")
        work: list[Pack] = [([configs[i] for i in pack], [list(job_overrides[i]) for i in pack]) for pack in packs]
        done = _in_processes(work, self.processes) if self.processes > 1 else [_run_pack(*item) for item in work]
        results: dict[int, Any] = {}
        for pack, values in zip(packs, done, strict=True):
            results |= dict(zip(pack, values, strict=True))
        return [_job_return(results[i], list(job)) for i, job in enumerate(job_overrides)]


Pack = tuple[list["RunConfig"], list[list[str]]]
"""Configurations that share a base, and each one's overrides."""


def _in_processes(work: list[Pack], processes: int) -> list[list[dict[str, Any]]]:
    """Train packs in worker processes, each with its share of the cores."""
    import os
    import warnings

    from joblib import Parallel, delayed, parallel_config

    # joblib replaces a worker whose memory has grown, between packs; the user need not know.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)
    with parallel_config(backend="loky", inner_max_num_threads=max(1, (os.cpu_count() or 1) // processes)):
        return Parallel(n_jobs=processes)(delayed(_run_pack)(*item) for item in work)


def _run_pack(configs: list["RunConfig"], overrides: list[list[str]]) -> list[dict[str, Any]]:
    from lorax.running.launch import run_pack

    return run_pack(configs, provenance={"launcher": "PackedLauncher"}, overrides=overrides)


def _job_return(value: Any, overrides: list[str]) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = value
    return done
