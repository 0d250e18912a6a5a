"""What makes a run the run it is: the fields it consumes, hence its id and its name in tables."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lorax.config import RunConfig
from lorax.probing import CALIBRATED

VERSIONS = {"adapters": 1, "training": 1, "evaluation": 1}
"""Bumped when a component's meaning changes, so that older records are not taken for the same run."""

TRAINED = ("lr", "steps", "batch_size", "weight_decay", "seed")
ADAPTED = ("targets", "recenter", "dropout")
PACKAGES = ("lorax-bench", "torch", "transformers", "hydra-core", "omegaconf", "reasoning-gym", "numpy")


def identity(config: RunConfig, initializer: Any, task: Any, model_digest: str, dtype: str) -> dict[str, Any]:
    """Return what this run consumes, for `run_id` to digest.

    Args:
        config: the resolved configuration, lr, steps and batch_size filled in.
        initializer: the built initialiser.
        task: the loaded task (its digest covers every example of every split).
        model_digest: digest of the pretrained weights.
        dtype: the resolved precision.
    """
    kept = consumed_fields(config, initializer)
    if "train" in kept and (task.kind != "classification" or initializer.kind == "head"):
        kept["train"].pop("head_lr", None)
    return kept | {
        "task": {"name": task.name, "digest": task.digest, "version": task.version},
        "model": {"name": config.model["name"], "digest": model_digest},
        "dtype": dtype,
        "versions": dict(VERSIONS),
    }


def consumed_fields(config: RunConfig, initializer: Any) -> dict[str, Any]:
    """Return the configured fields that a run of this method consumes.

    A frozen base consumes neither seed nor lr; full fine-tuning no dropout; SVFT no rank; LoRA no
    zeta. What is not consumed does not split runs: such twins are run once.
    """
    from lorax.initializers.base import consumed

    kept: dict[str, Any] = {"init": consumed(initializer), "task": config.task, "model": config.model}
    kept |= {"data_seed": config.data_seed, "dtype": config.dtype, "evaluate": config.evaluate}
    if initializer.kind != "none":
        kept |= {key: getattr(config, key) for key in TRAINED}
        kept["train"] = {key: value for key, value in config.train.items() if key not in _NOT_CONSUMED}
    if initializer.kind == "adapter":
        kept |= {key: getattr(config, key) for key in ADAPTED}
    elif initializer.kind == "full":
        kept["targets"] = config.targets
    if initializer.needs & CALIBRATED:
        kept["calibration"] = [config.calibration, config.train["calibration_batches"]]
    if config.diagnostics:
        own = {*kept["init"], *kept}
        others = _measured_with(config, own) if measured(config, initializer) else []
        kept["diagnostics"] = [config.diagnostics_every, config.forgetting_tokens, *others]
    return kept


def measured(config: RunConfig, initializer: Any) -> bool:
    """Return whether a run is diagnosed: where the base's layers stay as they are there is nothing to look at."""
    return config.diagnostics and initializer.kind not in ("none", "head")


def _measured_with(config: RunConfig, own: set[str]) -> list[str]:
    """What diagnostics depend on beyond what the method consumes: the rank of energies, the gradient's data.

    Named where they are not `_MEASURED_PLAINLY`, so that ids given before they counted still hold.
    """
    asked = {"rank": config.rank, "calibration": (config.calibration, config.train["calibration_batches"])}
    return [f"{key}={value}" for key, value in asked.items() if key not in own and value != _MEASURED_PLAINLY[key]]


_MEASURED_PLAINLY = {"rank": 8, "calibration": ("train", 8)}
_NOT_CONSUMED = ("checkpoint_every", "eval_batch_size", "calibration_batches")


@cache
def source() -> dict[str, Any]:
    """Return commit and cleanliness of the checkout this package runs from; None outside one."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("rev-parse", "--show-toplevel") != str(root):
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain", "--", "lorax", "conf", "hydra_plugins")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


@cache
def versions() -> dict[str, str | None]:
    """Return the versions of the packages whose change can change a result."""
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
