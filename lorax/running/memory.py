"""How much memory there is, and how much a step takes where that can be measured: what the packer asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorax.config import RunConfig


@dataclass(frozen=True)
class Probe:
    """A single run's step, measured on a GPU."""

    base: int
    """Bytes held before the step: base and adapter."""
    step: int
    """Bytes held at most during it, beyond those."""


@dataclass(frozen=True)
class Memory:
    """Where the packer's figures come from; tests bring others."""

    free: Callable[[str], int]
    """free(device) -> bytes."""
    probe: Callable[[RunConfig], Probe | None]
    """probe(config) -> a measured step; None where nothing can be measured."""


def total_bytes(device: str) -> int | None:
    """Return a GPU's memory; None for other devices, which share the machine's."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)


def free_bytes(device: str) -> int:
    """Return the free memory of a device."""
    import psutil

    if device.startswith("cuda") or device == "auto":
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def probe_step(config: RunConfig) -> Probe | None:
    """Run one step of plain LoRA at the run's rank, batch and precision on its longest examples, on a GPU alone.

    LoRA stands for every method: activations are what fills memory, and it needs no decomposition to start.

    Args:
        config: any job of a pack.

    Returns:
        None on other devices, and where not even one run fits: the pack is then halved as it always is.
    """
    from dataclasses import replace

    from lorax.running.device import resolve_placement

    placement = resolve_placement(config.dtype, config.device)
    if not placement.device.startswith("cuda"):
        return None
    import torch

    from lorax.adapters.install import find_targets, install
    from lorax.api import make_factors
    from lorax.forward.heads import install_heads
    from lorax.forward.modality import modality_of
    from lorax.initializers.registry import build
    from lorax.models.registry import load
    from lorax.running.launchers.memory import give_back
    from lorax.running.preflight import class_names, layer_targets, load_task
    from lorax.training.loop import Run, TrainPlan, train

    task, train_keys = load_task(config), ("accumulation", "max_tokens", "checkpointing")
    try:
        loaded = load(
            config.model, labels=class_names(task), dtype=placement.weights, device=placement.device, seed=config.seed
        )
        method = build("lora", shared={"rank": config.rank}, own={})
        targets = find_targets(loaded.model, layer_targets(config), head=loaded.head, rules=config.rules())
        [adapters] = install(loaded.model, [make_factors(loaded.model, method, targets)])
        heads = install_heads(loaded, [config.seed])
        rows = sorted(modality_of(loaded).encode(task, "train"), key=len)
        batch = config.batch_size or task.batch_size
        run = Run(adapters=adapters, data=rows[-batch:], lr=1e-6, head=heads[0] if heads else None)
        plan = TrainPlan(
            steps=2, batch_size=batch, autocast=placement.autocast, compile="eager", progress=False,
            **{key: config.train[key] for key in train_keys},
        )  # fmt: skip
        held = torch.cuda.memory_allocated(placement.device)
        torch.cuda.reset_peak_memory_stats(placement.device)
        train(loaded, [replace(run)], plan)
        return Probe(held, torch.cuda.max_memory_allocated(placement.device) - held)
    except torch.OutOfMemoryError:
        return None
    finally:
        loaded = adapters = run = heads = rows = targets = None  # type: ignore[assignment]
        give_back()


MEASURED = Memory(free_bytes, probe_step)
"""This machine's."""
