"""Diagnostics of a run, and the update of full fine-tuning, which is kept so that other arms are compared with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.adapters.selection.rules import NO_RULES
from lorax.config import RunConfig
from lorax.records import Unwritable, canonical, run_id, write_atomic
from lorax.running.identity import is_measured
from lorax.running.preflight import layer_targets, saved_whole, smallest
from lorax.running.prepared import PreparedRun

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.models.registry import Loaded
    from lorax.running.session import Session


def diagnose(session: Session, lane: int, gradients: Mapping[str, Tensor]) -> dict[str, Any]:
    """Measure one run after training; see `lorax.diagnostics.measure`.

    The cosine with full fine-tuning's update is null unless full fine-tuning ran before, on the same task, model, data
    seed and steps, at any learning rate (in a study: a final run). The update of the same seed is taken if there is
    one, else that of the lowest seed; the record names its run (`full_update_of`).

    Args:
        session: holds model, adapters and placement.
        lane: of the run that is measured.
        gradients: {layer: (m, n)} of the untouched model on calibration data.
    """
    from lorax.diagnostics.measure import References, Settings, measure

    run, adapters = session.runs[lane], session.adapters[lane]
    config = run.config
    is_reference = not run.initializer.has_factors  # full fine-tuning: the update that others are compared with
    full_update, source = (None, None) if is_reference else read_update(run)
    settings = Settings(
        targets=list(gradients), every=config.diagnostics_every, rank=config.rank,
        forgetting_tokens=config.forgetting_tokens,
    )  # fmt: skip
    references = References(factors=run.factors, gradients=gradients, full_update=full_update or {})
    autocast, cache = session.placement.autocast, session.cache
    measured = measure(session.loaded, adapters, settings, references, autocast_dtype=autocast, cache=cache)
    if is_reference and keeps_update(config):
        write_update(run, adapters.delta())
    return measured | {"full_update_of": source}


def gradients_at_start(run: PreparedRun, loaded: Loaded) -> Mapping[str, Tensor] | None:
    """Return the gradient of the untouched model for every target layer; None if the run is not diagnosed."""
    from lorax.adapters.install import find_targets
    from lorax.probing.gradient import layer_gradients
    from lorax.running.gradient_batches import gradient_batches

    if not is_measured(run.config, run.initializer) or not run.initializer.changes_weight:
        return None
    loss, batches = gradient_batches(run.task, loaded, run.config)
    bound = smallest(run.config, run.initializer)
    whole = [*loaded.head, *saved_whole(run.config, loaded)] if run.initializer.has_factors else loaded.head
    rules = run.config.rules() if run.initializer.has_factors else NO_RULES
    targets = find_targets(loaded.model, layer_targets(run.config), head=whole, smallest=bound, rules=rules)
    return layer_gradients(loaded.model, targets, loss, batches)


def keeps_update(config: RunConfig) -> bool:
    """Return whether a run's update may stand for full fine-tuning: any run's, but in a study only a final one's.

    The rates of tuning and cost runs were tried, not chosen.
    """
    study, _, stage = (config.tag or "").rpartition(".")
    return study != config.name or stage == "final"


def write_update(run: PreparedRun, delta: Mapping[str, Tensor]) -> None:
    """Keep full fine-tuning's update {layer: (m, n)}, one file per seed; where the disk is full, warn and go on."""
    from safetensors.torch import save

    facts = {"run_id": run.run_id, "seed": str(run.config.seed), "lr": f"{run.config.lr:g}"}
    data = save({name: part.contiguous() for name, part in delta.items()}, facts)
    try:
        write_atomic(_folder(run, run.config.targets) / f"{run.config.seed}.safetensors", data)
    except Unwritable as error:
        warnings.warn(f"full fine-tuning's update is not kept: {error}", stacklevel=2)


def read_update(run: PreparedRun) -> tuple[dict[str, Tensor] | None, dict[str, str] | None]:
    """Return full fine-tuning's update for a run to be compared with, and which run's it is: run_id, seed, lr.

    That of training the same targets if there is one, else of training everything; of the same seed if
    there is one, else of the lowest. (None, None) where there is none.
    """
    from safetensors import safe_open

    for targets in (run.config.targets, "all-linear"):
        files = {int(path.stem): path for path in _folder(run, targets).glob("*.safetensors") if path.stem.isdigit()}
        if files:
            seed = run.config.seed
            with safe_open(files[seed if seed in files else min(files)], framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    return None, None


def _folder(run: PreparedRun, targets: str | list[str]) -> Path:
    """Return the folder for the updates of one task, model, length of training and set of targets."""
    from platformdirs import user_cache_dir

    root = Path(os.environ.get("LORAX_CACHE") or user_cache_dir("lorax"))
    keys = ("task", "model", "data_seed", "steps", "batch_size", "dtype", "weight_decay", "train", "versions")
    facts = {name: run.identity.get(name) for name in keys} | {"targets": targets}
    return root / "updates" / run_id({"full update": canonical(facts)})
