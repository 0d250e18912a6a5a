"""`hydra/launcher=packed`: jobs that share a model, a task and a batch shape train in packs, on one frozen base."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class PackedLauncherConf:
    """`lanes`: most runs in a pack (null: as many as fit into memory); `processes`: packs that train side by side."""

    _target_: str = "hydra_plugins.lorax.launcher.PackedLauncher"
    lanes: int | None = None
    processes: int = 1


ConfigStore.instance().store(group="hydra/launcher", name="packed", node=PackedLauncherConf, provider="lorax")


class PackedLauncher(Launcher):
    """Groups jobs into packs and runs each pack as one training loop.

    Records have the ids of single runs, and their numbers up to rounding (README). A pack that does not fit into
    memory, or whose worker process is killed, is halved and tried again; what has finished is kept.
    """

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
        from lorax.running.launch import train_pack
        from lorax.running.launchers.workers import train_packs
        from lorax.running.packing import make_packs

        load = self.hydra_context.config_loader.load_sweep_config
        configs = [resolve(load(self.config, list(job))) for job in job_overrides]
        packs = make_packs(configs, self.lanes)
        print(f"{len(configs)} jobs in {len(packs)} packs of {', '.join(str(len(pack)) for pack in packs)}")
        work = [([configs[i] for i in pack], [list(job_overrides[i]) for i in pack]) for pack in packs]
        if self.processes > 1:
            done = train_packs(work, self.processes, train_pack)
        else:
            done = [result for pack in work for result in train_pack(*pack)]
        results = dict(zip([i for pack in packs for i in pack], done, strict=True))
        return [_job_return(results[i], list(job)) for i, job in enumerate(job_overrides)]


def _job_return(value: Any, overrides: list[str]) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = value
    return done
