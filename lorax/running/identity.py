"""What makes a run the run it is: the keys it reads, hence its id; and the code and packages it ran with."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.config import RunConfig
from lorax.models.registry import HEADED
from lorax.probing import CALIBRATED
from lorax.records import knobs
from lorax.training.objective import VERSION as OBJECTIVE_VERSION

if TYPE_CHECKING:
    from lorax.initializers.base import Initializer
    from lorax.tasks import Task

VERSIONS = {"adapters": 1, "training": 1, "evaluation": 1}
"""Bumped when a component's meaning changes, so that older records are not taken for the same run."""

MASKS = 2
"""How dropout masks are drawn, in the identity of runs that drop anything (2: from hashed counters)."""

PACKAGES = ("lorax-bench", "torch", "transformers", "hydra-core", "omegaconf", "reasoning-gym", "numpy")


def identity(config: RunConfig, initializer: Initializer, task: Task, model_digest: str, dtype: str) -> dict[str, Any]:
    """Return what this run consumes, for `run_id` to digest.

    Args:
        config: the resolved configuration, lr, steps and batch_size filled in.
        initializer: the built initialiser.
        task: the loaded task (its digest covers every example of every split).
        model_digest: digest of the pretrained weights.
        dtype: the resolved precision.
    """
    kept = consumed_fields(config, initializer)
    adapters_beside_head = task.kind in HEADED and initializer.changes_layers  # a head alone trains at `lr`
    if "train" in kept and not adapters_beside_head:
        kept["train"].pop("head_lr", None)
    several: dict[str, Any] = {}
    if config.parts():
        several["parts"] = [{key: getattr(part, key) for key in ("name", "digest", "version")} for part in task.parts]
        if initializer.trains and len(set(task.weights)) > 1:
            kept["weights"] = list(task.weights)
    return (
        kept
        | {
            "task": {"name": task.name, "digest": task.digest, "version": task.version} | several,
            "model": {"name": config.model["name"], "digest": model_digest},
            "dtype": dtype,
            "versions": dict(VERSIONS),
        }
        | ({"masks": {"version": MASKS}} if kept.get("dropout") else {})
    )


def consumed_fields(config: RunConfig, initializer: Initializer) -> dict[str, Any]:
    """Return the configured fields that a run of this method consumes.

    A frozen base consumes neither seed nor lr; full fine-tuning no dropout; SVFT no rank; LoRA no
    zeta. What is not consumed does not split runs: such twins are run once.
    """
    from lorax.initializers.registry import consumed

    kept: dict[str, Any] = {"init": consumed(initializer)}
    kept |= {key: getattr(config, key) for key in knobs.EVERY_RUN}
    if initializer.trains:
        kept |= {key: getattr(config, key) for key in knobs.TRAINING}
        unread = {*knobs.TRAIN_BOOKKEEPING, *knobs.TRAIN_CALIBRATION}
        unread |= {key for key in knobs.TRAIN_WHERE_SET if config.train.get(key) is None}
        kept["train"] = {key: value for key, value in config.train.items() if key not in unread}
        if config.objective != knobs.LIKELIHOOD:
            kept["objective"] = config.objective
            kept["reinforce"] = {**config.reinforce, "version": OBJECTIVE_VERSION}
    if initializer.has_factors:
        kept |= {key: getattr(config, key) for key in knobs.ADAPTERS}
        kept |= _rules(config, initializer)
    elif initializer.changes_layers:
        kept["targets"] = config.targets
    if initializer.trains and config.parts() and not initializer.shared_by_tasks:
        kept |= {key: getattr(config, key) for key in knobs.GROUP}
    if initializer.needs & CALIBRATED:
        kept["calibration"] = [config.calibration, config.train["calibration_batches"]]
    if config.diagnostics:
        consumed_already = {*kept["init"], *kept}
        others = _measured_with(config, consumed_already) if is_measured(config, initializer) else []
        kept["diagnostics"] = [config.diagnostics_every, config.forgetting_tokens, *others]
    return kept


def _rules(config: RunConfig, initializer: Initializer) -> dict[str, Any]:
    """Return the rules beside the targets that are set and that the method reads; none where nobody set any."""
    fields = {item.name for item in dataclasses.fields(initializer)}
    unread = {"rank_pattern": "rank", "alpha_pattern": "alpha"}
    return {key: value for key, value in config.rules().given().items() if unread.get(key, "") in {*fields, ""}}


def is_measured(config: RunConfig, initializer: Initializer) -> bool:
    """Return whether a run is diagnosed: where the base's layers stay as they are there is nothing to look at."""
    return config.diagnostics and initializer.changes_layers


def _measured_with(config: RunConfig, consumed_already: set[str]) -> list[str]:
    """Return what diagnostics read beyond what the method consumes: the rank of energies, the gradient's data.

    A value of `_NOT_IN_IDS` is left out, so that runs keep the ids that they had before these keys counted.
    """
    read = {"rank": config.rank, "calibration": (config.calibration, config.train["calibration_batches"])}
    return [
        f"{key}={value}" for key, value in read.items() if key not in consumed_already and value != _NOT_IN_IDS[key]
    ]


_NOT_IN_IDS = {"rank": 8, "calibration": ("train", 8)}


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
    installed: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = None
    return installed
