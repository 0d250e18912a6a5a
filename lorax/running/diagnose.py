"""Diagnostics of a run, and full fine-tuning's update kept for the other arms to be compared with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorax.config import RunConfig
from lorax.records import Unwritable, canonical, run_id, write_atomic
from lorax.running.identity import measured
from lorax.running.prepared import Ready


def diagnose(session: Any, number: int, factors: dict[str, Any], gradients: Any) -> dict[str, Any]:
    """Measure one lane after training; see `lorax.diagnostics.measure`.

    The cosine to full fine-tuning's own update needs that arm's run on the same task, model, data seed
    and steps first, at any learning rate (of a study: its final runs). The update of the same seed is
    taken if there is one, else of the lowest; the record says which (`full_update_of`). Null otherwise.

    Args:
        session: holds model, adapters and place.
        number: the lane.
        factors: its factors at step 0; empty for full fine-tuning.
        gradients: {layer: (m, n)} of the untouched model on calibration data.
    """
    from lorax.diagnostics.measure import References, Settings, measure

    ready: Ready = session.lanes[number]
    config, adapters = ready.config, session.adapters[number]
    full = ready.initializer.kind == "full"
    delta, source = (None, None) if full else read_update(ready)
    settings = Settings(
        targets=list(gradients), every=config.diagnostics_every, rank=config.rank,
        forgetting_tokens=config.forgetting_tokens,
    )  # fmt: skip
    references = References(factors=factors, gradients=gradients, full_update=delta or {})
    found = measure(
        session.loaded, adapters, settings, references, autocast_dtype=session.place.autocast, cache=session.cache
    )
    if full and keeps(config):
        write_update(ready, adapters.delta())
    return found | {"full_update_of": source}


def gradients_at_start(ready: Ready, loaded: Any, place: Any) -> Any:
    """Return the gradient of the untouched model for every target layer, or None where nobody wants it."""
    from lorax.adapters.install import find_targets
    from lorax.probing.gradient import layer_gradients
    from lorax.running.gradient_batches import calibration

    if not measured(ready.config, ready.initializer):
        return None
    loss, batches = calibration(ready.task, loaded, ready.config, place)
    targets = find_targets(loaded.model, ready.config.targets, head=loaded.head)
    return layer_gradients(loaded.model, targets, loss, batches)


def keeps(config: RunConfig) -> bool:
    """Return whether a run's update may stand for full fine-tuning: any run's, but in a study only a final one's.

    The rates of tuning and cost runs were tried, not chosen.
    """
    study, _, stage = (config.tag or "").rpartition(".")
    return study != config.name or stage == "final"


def write_update(ready: Ready, delta: Mapping[str, Any]) -> None:
    """Keep full fine-tuning's update {layer: (m, n)}, one file a seed; a cache that is full is done without."""
    from safetensors.torch import save

    facts = {"run_id": ready.run_id, "seed": str(ready.config.seed), "lr": f"{ready.config.lr:g}"}
    data = save({name: part.contiguous() for name, part in delta.items()}, facts)
    try:
        write_atomic(_folder(ready, ready.config.targets) / f"{ready.config.seed}.safetensors", data)
    except Unwritable as error:
        warnings.warn(f"full fine-tuning's update is not kept: {error}", stacklevel=2)


def read_update(ready: Ready) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    """Return full fine-tuning's update for a run to be compared with, and whose it is: run_id, seed, lr.

    Of training the same targets if there is one, else of training everything; of the same seed if
    there is one, else of the lowest. Nothing where there is none.
    """
    from safetensors import safe_open

    for targets in (ready.config.targets, "all-linear"):
        found = {int(path.stem): path for path in _folder(ready, targets).glob("*.safetensors") if path.stem.isdigit()}
        if found:
            seed = ready.config.seed
            with safe_open(found[seed if seed in found else min(found)], framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    return None, None


def _folder(ready: Ready, targets: Any) -> Path:
    """Where the updates of one task, model, length of training and set of targets lie."""
    from platformdirs import user_cache_dir

    root = Path(os.environ.get("LORAX_CACHE") or user_cache_dir("lorax"))
    keys = ("task", "model", "data_seed", "steps", "batch_size", "dtype", "weight_decay", "train", "versions")
    facts = {name: ready.identity.get(name) for name in keys} | {"targets": targets}
    return root / "updates" / run_id({"full update": canonical(facts)})
