"""Diagnostics of a run, and full fine-tuning's update kept for the other arms to be compared with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lorax.records import canonical, run_id
from lorax.running.lanes import Ready


def diagnose(session: Any, number: int, factors: dict[str, Any], gradients: Any) -> dict[str, Any]:
    """Measure one lane after training; see `lorax.diagnostics.measure`.

    The cosine to full fine-tuning's own update needs that arm's run on the same task, model, data seed
    and steps first (any learning rate and seed; the record says which): it is null otherwise.

    Args:
        session: holds model, adapters and place.
        number: the lane.
        factors: its factors at step 0; empty for full fine-tuning.
        gradients: {layer: (m, n)} of the untouched model on calibration data.
    """
    from lorax.diagnostics.measure import measure

    ready: Ready = session.lanes[number]
    config, adapters = ready.config, session.adapters[number]
    full = ready.initializer.kind == "full"
    delta, source = (None, None) if full else _read(ready)
    found = measure(
        session.loaded, session.task, adapters,
        targets=list(gradients), seed=config.seed, place=session.place,
        factors=factors or None, gradients=gradients, full_delta=delta, rank=config.rank,
        layers=config.diagnostics_every, forgetting_tokens=config.forgetting_tokens, cache=session.cache,
    )  # fmt: skip
    if full:
        _write(ready, adapters.delta())
    return found | {"full_update_of": source}


def gradients_at_start(ready: Ready, loaded: Any, place: Any) -> Any:
    """Return the gradient of the untouched model for every target layer, or None where nobody wants it."""
    from lorax.adapters.install import find_targets
    from lorax.probing.gradient import layer_gradients
    from lorax.running.calibration import calibration

    if not ready.config.diagnostics or ready.initializer.kind in ("none", "head"):
        return None
    loss, batches = calibration(ready.task, loaded, ready.config, place)
    targets = find_targets(loaded.model, ready.config.targets, head=loaded.head)
    return layer_gradients(loaded.model, targets, loss, batches)


def _path(ready: Ready) -> Path:
    from platformdirs import user_cache_dir

    root = Path(os.environ.get("LORAX_CACHE") or user_cache_dir("lorax"))
    keys = ("task", "model", "data_seed", "steps", "batch_size", "dtype")
    key = run_id({"full update": canonical({name: ready.identity.get(name) for name in keys})})
    return root / "updates" / f"{key}.safetensors"


def _write(ready: Ready, delta: dict[str, Any]) -> None:
    from safetensors.torch import save

    from lorax.records import write_atomic

    facts = {"run_id": ready.run_id, "seed": str(ready.config.seed), "lr": f"{ready.config.lr:g}"}
    write_atomic(_path(ready), save({name: part.contiguous() for name, part in delta.items()}, facts))


def _read(ready: Ready) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    from safetensors import safe_open

    path = _path(ready)
    if not path.is_file():
        return None, None
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
