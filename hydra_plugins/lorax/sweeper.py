"""The sweeper of `-m` and of studies: it knows Hydra; what is run and in which order is in `lorax.running`."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LoraxSweeperConf:
    """Configuration of the sweeper; `params` as in Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.lorax.sweeper.LoraxSweeper"
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="lorax", node=LoraxSweeperConf, provider="lorax")


class LoraxSweeper(Sweeper):
    """Expands the grid, or takes a study's rounds, and hands jobs to whatever launcher was chosen."""

    def __init__(self, params: dict[str, str] | None = None):
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over and make the launcher; both compose a job's configuration once between them."""
        from lorax.running.command.composing import ComposedOnce
        from lorax.running.launchers.cluster import name_jobs

        study = config.get("study") or {}
        name_jobs(config, str(study.get("name") or config.get("name")))
        loader: Any = ComposedOnce(hydra_context.config_loader)
        self.hydra_context = HydraContext(config_loader=loader, callbacks=hydra_context.callbacks)
        self.config: DictConfig = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the grid of `arguments`, or the study they name."""
        from lorax.running.study import run_study
        from lorax.running.sweep import run_grid

        if self.config.get("study") is not None:
            return run_study(self, arguments)
        return run_grid(self, [f"{key}={value}" for key, value in self.params.items()] + list(arguments))

    def compose(self, overrides: list[str]) -> DictConfig:
        """Return the configuration that one job would get."""
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))

    def parse(self, arguments: list[str]) -> list[Any]:
        """Return Hydra's parsed overrides."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        return OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(arguments)

    def expand(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of every job in the grid, in Hydra's own order."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        from lorax.running.command.task_parts import with_parts

        return [with_parts(job) for job in BasicSweeper.split_arguments(self.parse(arguments), None)[0]]
