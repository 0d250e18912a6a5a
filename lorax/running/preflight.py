"""Checks that need the model's shapes or the task's files, made before any run of a sweep starts.

The model is built on the meta device from its configuration: no weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from lorax.config import RunConfig
from lorax.errors import UserError
from lorax.records import canonical, check_writable, knobs
from lorax.running.device import resolve_device
from lorax.running.sharding.processes import check_sharded
from lorax.tasks.group import EXAMPLE, is_group

if TYPE_CHECKING:
    from lorax.adapters.face import LayerPlan
    from lorax.initializers.base import Initializer
    from lorax.models.registry import Loaded
    from lorax.tasks import Task


def preflight(configs: Sequence[RunConfig]) -> None:
    """Check tasks, models, targets and ranks, once for each distinct combination.

    Raises:
        UserError: a folder cannot be written, a device is not there, a data file cannot be read, a
            target matches nothing, a rank does not fit a layer.
    """
    tasks: dict[str, Task] = {}
    shapes: dict[str, dict[str, tuple[int, int]]] = {}
    for key in ("results_dir", "save"):
        for folder in dict.fromkeys(getattr(config, key) for config in configs):
            if folder is not None:
                check_writable(key, folder)
    for device in dict.fromkeys(config.device for config in configs):
        resolve_device(device)
    if any(config.cache == "on" for config in configs):
        from lorax.probing.cache import Cache

        Cache.default()  # refuses a size that it cannot read
    for config in configs:
        check_sharded(config)
        check_group(config)
    for config in [single for each in configs for single in each.parts().values() or [each]]:
        data = canonical([config.task, config.data_seed])
        if data not in tasks:
            tasks[data] = load_task(config)
            if (rows := tasks[data].notes.get("data")) is not None:
                _say(f"task {tasks[data].name}: {rows}")
        task = tasks[data]
        check_batch(config, task)
        check_objective(config, task)
        initializer = config.initializer()
        if initializer.adapts == "module":
            site_plans(config, task)
        elif initializer.changes_layers:
            key = canonical(
                [
                    config.model,
                    task.kind,
                    task.labels and len(task.labels),
                    layer_targets(config),
                    config.rules().given(),
                ]
            )
            if key not in shapes:
                shapes[key] = layer_shapes(config, task)
            check_ranks(config, initializer, shapes[key])
        elif initializer.trains:
            check_head(config, task)


def check_group(config: RunConfig) -> None:
    """Refuse a group that names no task or tasks of several kinds, and a method that is for groups alone elsewhere."""
    if is_group(config.task):
        load_task(config)
    elif tensors := config.initializer().shared_by_tasks:
        name = config.init["name"]
        raise UserError(f"init={name}: its {' and '.join(tensors)} are what several tasks share; {EXAMPLE}")


@lru_cache
def _say(line: str) -> None:
    """Print a line, once a process: a study checks its jobs before every round."""
    print(line, flush=True)


def check_batch(config: RunConfig, task: Task) -> None:
    """Refuse a batch that is larger than what there is to train on: a step would see examples several times."""
    if config.batch_size is not None and config.batch_size > len(task.train) and config.initializer().trains:
        raise UserError(f"batch_size={config.batch_size}: task={task.name} has {len(task.train):,} training examples")


def check_objective(config: RunConfig, task: Task) -> None:
    """Refuse rewards for a task whose answers are not generated, or are better the lower they score."""
    if config.objective == knobs.LIKELIHOOD or not config.initializer().trains:
        return
    if task.kind != "generation":
        raise UserError(
            f"objective={config.objective}: rewards are for texts that are generated, task={task.name} is {task.kind}"
        )
    if task.direction != "max":
        raise UserError(f"objective={config.objective}: a reward is higher for better, {task.metric} is lower")


def load_task(config: RunConfig) -> Task:
    """Load the run's task; a process loads each once."""
    return _load_task(canonical([config.task, config.data_seed]))


@lru_cache(maxsize=8)
def _load_task(key: str) -> Task:
    from lorax.tasks.registry import load

    return load(*json.loads(key))


def class_names(task: Task) -> list[str] | None:
    """Return what the outputs of a model's head stand for; None where the answer is a text.

    Of a group of tasks, those of the first: each task gets a head of its own.
    """
    from lorax.models.registry import HEADED, Labels

    if task.parts:
        return class_names(task.parts[0])
    return Labels(task.labels or (), task.kind) if task.kind in HEADED and task.labels else None


def layer_shapes(config: RunConfig, task: Task) -> dict[str, tuple[int, int]]:
    """Return {layer name: (m, n)} of the layers that a run would adapt, without loading weights.

    Raises:
        UserError: no layer matches; the task's kind does not fit the model's.
    """
    from lorax.adapters.install import find_targets
    from lorax.adapters.kinds import shape_of
    from lorax.models.registry import skeleton

    loaded = skeleton(config.model, labels=class_names(task))
    check_task_fits(config, task, loaded)
    whole = [*loaded.head, *saved_whole(config, loaded)]
    targets = find_targets(loaded.model, layer_targets(config), head=whole, rules=config.rules())
    return {name: shape_of(module) for name, module in targets.items()}


def saved_whole(config: RunConfig, loaded: Loaded) -> list[str]:
    """Return the modules that a run trains whole beside its adapters, but for a fresh head, which trains anyway.

    Raises:
        UserError: a name in modules_to_save that matches no module with weights.
    """
    from lorax.adapters.selection.whole import with_parameters

    names = config.rules().saved_whole(with_parameters(loaded.model))
    return [name for name in names if not any(name == head or name.startswith(f"{head}.") for head in loaded.head)]


def layer_targets(config: RunConfig) -> str | list[str]:
    """Return the run's targets; under "all-linear" the layers that the method names, where it serves those alone."""
    return (config.initializer().layers or config.targets) if config.targets == "all-linear" else config.targets


def smallest(config: RunConfig, initializer: Initializer) -> int:
    """Return the smallest min(m, n) of a layer that a run adapts under "all-linear".

    What fits the rank but not the method (LoRA-GA needs 2 r) is refused, not left out: arms of one rank are compared
    on the same layers.
    """
    return min(initializer.smallest, config.rank)


def check_ranks(config: RunConfig, initializer: Initializer, shapes: dict[str, tuple[int, int]]) -> None:
    """Refuse layers that a method cannot serve, but for those that "all-linear" leaves out as too small."""
    from lorax.adapters.targets import too_small
    from lorax.api import check_shapes

    small = too_small(shapes, smallest(config, initializer), config.targets, config.rules())
    check_shapes(initializer, {name: shape for name, shape in shapes.items() if name not in small}, config.rules())


def site_plans(config: RunConfig, task: Task) -> dict[str, LayerPlan]:
    """Return {submodule: what a method that adapts modules would put there}, without loading weights.

    Raises:
        UserError: targets name no submodule, or the method cannot stand there.
    """
    from lorax.adapters.install import find_targets
    from lorax.api import make_factors
    from lorax.models.registry import skeleton

    loaded = skeleton(config.model, labels=class_names(task))
    check_task_fits(config, task, loaded)
    method, rules = config.initializer(), config.rules()
    whole = [*loaded.head, *saved_whole(config, loaded)]
    sites = find_targets(loaded.model, config.targets, head=whole, modules=True, rules=rules, sites=method.sites)
    return make_factors(loaded.model, method, sites, rules=rules)


def check_head(config: RunConfig, task: Task) -> None:
    """Refuse to train the head alone where there is no fresh one."""
    from lorax.models.registry import skeleton

    loaded = skeleton(config.model, labels=class_names(task))
    check_task_fits(config, task, loaded)
    if not loaded.head:
        name = config.model["name"]
        raise UserError(f"init=head: model={name} has no fresh head on task={config.task['name']}; nothing would train")


def check_task_fits(config: RunConfig, task: Task, loaded: Loaded) -> None:
    """Refuse a task of a kind that the model cannot do."""
    from lorax.forward.modality import modality_of

    if task.kind not in modality_of(loaded).task_kinds:
        name = config.model["name"]
        raise UserError(f"task={config.task['name']}: a {task.kind} task, but model={name} is a {loaded.kind} model")
