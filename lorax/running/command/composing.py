"""A sweep composes the configuration of each job once: to check it, and again to run it.

Hydra reads some twenty YAML files for every composition, about 0.15 s. A study asks for the configuration of a job
to bind its design, to check a round and to launch it; the launcher composes on its own.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from omegaconf import DictConfig


class ComposedOnce:
    """Hydra's config loader, with a memory for the configurations of jobs; everything else is the loader's own.

    Each call returns a copy of its own: launchers write a job's number into it. Copies are kept as bytes, about 4 kB
    a job, so that a grid of thousands does not fill memory. What could not be composed is not kept.

    Args:
        loader: Hydra's.
    """

    def __init__(self, loader: ConfigLoader):
        self._loader = loader
        self._composed: dict[tuple[Any, ...], bytes] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """Return the configuration of the job with these overrides.

        Args:
            master_config: the sweep's configuration.
            sweep_overrides: the job's words.
        """
        hydra = master_config.hydra
        key = (hydra.job.config_name, tuple(hydra.overrides.hydra), tuple(sweep_overrides))
        known = self._composed.get(key)
        if known is None:
            made = self._loader.load_sweep_config(master_config, list(sweep_overrides))
            self._composed[key] = zlib.compress(pickle.dumps(made), 1)
            return made
        copy: DictConfig = pickle.loads(zlib.decompress(known))
        OmegaConf.copy_cache(from_config=master_config, to_config=copy)
        return copy

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __getstate__(self) -> dict[str, Any]:
        """A worker process composes its own job: it gets the loader without the memory."""
        return {"_loader": self._loader, "_composed": {}}
