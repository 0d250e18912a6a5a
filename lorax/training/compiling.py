"""How the steps of a pack run: as they come, or recorded; by what was asked for, the device and the steps to go."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lorax.forward.recorders import CudaGraphs, Recorder

if TYPE_CHECKING:
    from torch import nn

    from lorax.training.state import RunState

WORTH = 20
"""Steps to go from which `auto` records: to record a shape of batch costs about what so many recorded steps save."""


def choose(
    asked: str, states: Sequence[RunState], model: nn.Module, device: torch.device
) -> tuple[str, Recorder | None]:
    """Return how steps will run, and with which recorder; what was asked for and cannot be is said in one line.

    Args:
        asked: auto | eager | graph | inductor.
        states: the runs of a pack, those from a checkpoint restored.
        model: what they train on.
        device: where it is.
    """
    if asked == "eager" or (asked == "auto" and device.type != "cuda"):
        return "eager", None
    to_go = max(state.plan.steps - state.step for state in states)
    if asked == "auto" and to_go <= WORTH:
        return "eager", None
    if (why := _hindrance(states, model, device)) is not None:
        warnings.warn(f"train.compile={asked}: {why}; steps run eager", stacklevel=3)
        return "eager", None
    if asked == "inductor":
        warnings.warn("train.compile=inductor: the base is not compiled yet; steps run as graph", stacklevel=3)
    return "graph", CudaGraphs(device)


def _hindrance(states: Sequence[RunState], model: nn.Module, device: torch.device) -> str | None:
    """Return why steps cannot be recorded, or None."""
    if device.type != "cuda":
        return f"a CUDA graph needs a GPU, this is {device.type}"
    if getattr(model, "is_gradient_checkpointing", False):
        return "gradient checkpointing puts random states back, which a graph cannot"
    acting = [type(state.run.rule).__qualname__ for state in states if state.run.rule and not state.run.rule.in_place]
    if acting:
        return f"{acting[0]} acts otherwise than by writing to tensors in place"
    return None
