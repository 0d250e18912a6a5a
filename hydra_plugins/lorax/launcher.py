"""`hydra/launcher=packed`: jobs that share a model, a task and a batch shape train in packs, on one frozen base."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class PackedLauncherConf:
    """`lanes`: most runs in a pack (null: as many as fit into memory).

    `processes`: packs that train side by side (null: one, or with `gpus` one a card).
    `gpus`: a card for each worker process: auto (all that are visible), a number, or a list such as [0,2] of places
    among the visible ones; null: all processes compute on the device of their jobs, the first card.
    """

    _target_: str = "hydra_plugins.lorax.launcher.PackedLauncher"
    lanes: int | None = None
    processes: int | None = None
    gpus: Any = None


ConfigStore.instance().store(group="hydra/launcher", name="packed", node=PackedLauncherConf, provider="lorax")


class PackedLauncher(Launcher):
    """Groups jobs into packs and runs each pack as one training loop.

    Records have the ids of single runs, and their numbers up to rounding (README). A pack that does not fit into
    memory, or whose worker process is killed, is halved and tried again; what has finished is kept.
    """

    def __init__(self, lanes: int | None = None, processes: int | None = None, gpus: Any = None):
        from lorax.errors import UserError
        from lorax.running.launchers import cards

        for key, value in (("lanes", lanes), ("processes", processes)):
            if value is not None and value < 1:
                raise UserError(f"hydra.launcher.{key}={value}: must be at least 1")
        self.lanes, self.cards, self.pins = lanes, [], [{}]
        if gpus is not None:
            count, rocm = cards.seen_by_torch()
            self.cards = cards.choose(gpus if isinstance(gpus, str | int) else list(gpus),
                                      cards.visible(os.environ, count, rocm))  # fmt: skip
        if self.cards:
            self.pins = [cards.pinned(card, os.environ, rocm) for card in self.cards]
        elif gpus is not None:
            print(f"{cards.KEY}=auto: no card is visible; runs go where their device= says")
        self.processes = processes or len(self.cards) or 1

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run all jobs; results in the order of `job_overrides`."""
        from lorax.config import resolve
        from lorax.errors import UserError
        from lorax.running.launch import OUR_SWEEPER, train_pack
        from lorax.running.launchers import cards
        from lorax.running.launchers.workers import train_packs
        from lorax.running.packing import make_packs
        from lorax.running.sharding import processes

        # Our sweeper waits itself for what other processes have; another one needs each job's result at once.
        train = partial(train_pack, wait=str(self.config.hydra.sweeper.get("_target_")) != OUR_SWEEPER)
        load = self.hydra_context.config_loader.load_sweep_config
        configs = [resolve(load(self.config, list(job))) for job in job_overrides]
        free = None
        if self.cards:
            cards.check_devices(configs)
            if self.lanes is None:
                free = cards.free_bytes(self.pins, -(-self.processes // len(self.cards)))
            if (line := cards.shared_line(self.processes, self.cards)) is not None:
                print(line)
        packs = make_packs(configs, self.lanes, free, len(self.cards) or 1)
        if any(processes.is_sharded(config) for config in configs):
            if self.processes > 1 or self.cards:
                raise UserError(
                    f"{processes.KEY}=fsdp: torchrun's processes are the workers; leave out processes and gpus"
                )
            packs = processes.as_first(packs)  # how many fit is measured, and all must have the same
        print(f"{len(configs)} jobs in {len(packs)} packs of {', '.join(str(len(pack)) for pack in packs)}")
        work = [([configs[i] for i in pack], [list(job_overrides[i]) for i in pack]) for pack in packs]
        if self.processes > 1 or self.cards:  # a card is chosen before CUDA starts, hence in a process of its own
            done = train_packs(work, self.processes, train, self.pins)
        else:
            done = [result for pack in work for result in train(*pack)]
        results = dict(zip([i for pack in packs for i in pack], done, strict=True))
        return [_job_return(results[i], list(job)) for i, job in enumerate(job_overrides)]


def _job_return(value: Any, overrides: list[str]) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = value
    return done
