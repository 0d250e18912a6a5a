"""Checks that need the model's shapes or the task's files, made before any run of a sweep starts.

The model is built on the meta device from its configuration: no weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lorax.config import RunConfig
from lorax.errors import UserError
from lorax.records import canonical, check_writable
from lorax.running.device import resolve_device


def preflight(configs: Sequence[RunConfig]) -> None:
    """Check tasks, models, targets and ranks, once for each distinct combination.

    Raises:
        UserError: a folder cannot be written, a device is not there, a data file cannot be read, a
            target matches nothing, a rank does not fit a layer.
    """
    tasks: dict[str, Any] = {}
    shapes: dict[str, dict[str, tuple[int, int]]] = {}
    for key in ("results_dir", "save"):
        for folder in dict.fromkeys(getattr(config, key) for config in configs):
            if folder is not None:
                check_writable(key, folder)
    for device in dict.fromkeys(config.device for config in configs):
        resolve_device(device)
    for config in configs:
        task_key = canonical([config.task, config.data_seed])
        if task_key not in tasks:
            tasks[task_key] = load_task(config)
        task = tasks[task_key]
        shape_key = canonical([config.model, task.labels and len(task.labels), config.targets])
        initializer = config.initializer()
        if initializer.kind == "none":
            continue
        if initializer.kind == "head":
            check_head(config, task)
            continue
        if shape_key not in shapes:
            shapes[shape_key] = layer_shapes(config, task)
        if initializer.kind == "adapter":
            for name, (m, n) in shapes[shape_key].items():
                initializer.check(name, m, n)


def load_task(config: RunConfig) -> Any:
    """Load the run's task; the lanes and rounds of one process share it."""
    return _load_task(canonical([config.task, config.data_seed]))


@lru_cache(maxsize=8)
def _load_task(key: str) -> Any:
    from lorax.tasks.registry import load

    return load(*json.loads(key))


def layer_shapes(config: RunConfig, task: Any) -> dict[str, tuple[int, int]]:
    """Return {layer name: (m, n)} of the layers that a run would adapt, without loading weights.

    Raises:
        UserError: no layer matches; the task's kind does not fit the model's.
    """
    from lorax.adapters.install import find_targets
    from lorax.models.registry import skeleton
    from lorax.probing.weight import shape_of

    loaded = skeleton(config.model, labels=task.labels if task.kind == "classification" else None)
    check_kind(config, task, loaded)
    found = find_targets(loaded.model, config.targets, head=loaded.head)
    return {name: shape_of(module) for name, module in found.items()}


def check_head(config: RunConfig, task: Any) -> None:
    """Refuse to train the head alone where there is no fresh one."""
    from lorax.models.registry import skeleton

    loaded = skeleton(config.model, labels=task.labels if task.kind == "classification" else None)
    check_kind(config, task, loaded)
    if not loaded.head:
        name = config.model["name"]
        raise UserError(f"init=head: model={name} has no fresh head on task={config.task['name']}; nothing would train")


def check_kind(config: RunConfig, task: Any, loaded: Any) -> None:
    """Refuse a task that the model cannot do."""
    from lorax.forward.modality import modality_of

    if task.kind not in modality_of(loaded).task_kinds:
        name = config.model["name"]
        raise UserError(f"task={config.task['name']}: a {task.kind} task, but model={name} is a {loaded.kind} model")
