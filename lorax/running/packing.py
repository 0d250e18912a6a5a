"""Which jobs may share a frozen base, and how many at once. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorax.config import RunConfig
from lorax.records import canonical

MOST_LANES = 16
"""More lanes bring little more speed (the base product is saturated) and cost activations each."""


def pack_key(config: RunConfig) -> str:
    """Return what jobs must agree on to be lanes of one pack.

    Model, task, data, precision and batch shape decide what one forward pass computes. Method, rank,
    alpha, zeta, lr, seed, dropout and targets may differ. Arms without adapters (full fine-tuning,
    frozen base) and folded weights change or need no shared base: each is alone. Diagnostics take one
    gradient of the untouched model for the whole pack, so its lanes agree in what that is made of.
    """
    alone = config.initializer().kind != "adapter" or config.recenter == "fold"
    measured = [config.seed, config.targets, config.calibration, config.train["calibration_batches"]]
    shared = [
        measured if config.diagnostics else None,
        config.model, config.task, config.data_seed, config.dtype, config.device, config.steps,
        config.batch_size, config.evaluate, config.name, config.results_dir, config.base, config.diagnostics,
        {key: config.train[key] for key in ("accumulation", "eval_batch_size", "head_lr")},
    ]  # fmt: skip
    return canonical([shared, config.to_dict() if alone else None])


def group(configs: Sequence[RunConfig], lanes: int | None) -> list[list[int]]:
    """Return packs as lists of positions, in order of first appearance.

    Packs are filled one after another: what a kill leaves over is whole packs, and the same command
    then forms the same ones, so that every lane has the neighbours it would have had.

    Args:
        configs: the jobs.
        lanes: lanes in a pack at most; None: `fitting_lanes` of each pack.
    """
    groups: dict[str, list[int]] = {}
    for position, config in enumerate(configs):
        groups.setdefault(pack_key(config), []).append(position)
    packs = []
    for members in groups.values():
        most = lanes or (fitting_lanes(configs[members[0]]) if len(members) > 1 else 1)
        packs += [members[start : start + most] for start in range(0, len(members), most)]
    return packs


def fitting_lanes(config: RunConfig, free_bytes: int | None = None) -> int:
    """Return how many lanes' activations fit into half of the free memory.

    A lane keeps for its backward pass about `layers * (14 hidden + 6 intermediate)` numbers a token
    (inputs of the products, attention, norms and activation), two bytes under bf16 autocast, plus
    four copies of its adapter. The estimate is generous: a pack that swaps is slower than two.

    Args:
        config: any job of the pack.
        free_bytes: for tests; else what the device or the machine has free.
    """
    from lorax.models.registry import skeleton
    from lorax.running.preflight import load_task

    free = free_bytes if free_bytes is not None else _free_bytes(config.device)
    task = load_task(config)
    labels = task.labels if task.kind == "classification" else None
    size = skeleton(config.model, labels=labels).model.config
    hidden, layers = size.hidden_size, size.num_hidden_layers
    tokens = (config.batch_size or task.batch_size) / config.train["accumulation"] * _tokens(task)
    per_token = layers * (14 * hidden + 6 * getattr(size, "intermediate_size", 4 * hidden)) * 4
    adapter = 16 * 14 * config.rank * hidden * layers
    return max(1, min(MOST_LANES, int(free / 2 // (tokens * per_token + adapter))))


def _tokens(task: Any) -> float:
    """Tokens of a long example: a quarter of its characters, with the template's own fifty."""
    lengths = sorted(len(example.prompt) + len(example.answer) for example in task.train)
    return lengths[int(0.95 * (len(lengths) - 1))] / 3.5 + 50


def _free_bytes(device: str) -> int:
    import psutil

    if device.startswith("cuda") or device == "auto":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available
