"""How the steps of a pack run: as they come, recorded, on a compiled base; by what was asked for, the device and the
steps to go.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorax.forward.blocks.compiled import CompiledBase, why_not
from lorax.forward.recorders import CudaGraphs, Recorder, Rerun

if TYPE_CHECKING:
    from torch import nn

    from lorax.training.state import RunState

WORTH = 20
"""Steps to go from which `auto` records: to record a shape of batch costs about what so many recorded steps save."""


@dataclass(frozen=True)
class Choice:
    """How steps run."""

    recorder: Recorder | None = None
    """Records steps; None: they run eager."""
    base: CompiledBase | None = None
    """Compiles the base."""

    @property
    def name(self) -> str:
        """What a record calls it."""
        return "inductor" if self.base is not None else "eager" if self.recorder is None else "graph"


EAGER = Choice()


def choose(asked: str, states: Sequence[RunState], model: nn.Module, device: torch.device) -> Choice:
    """Return how steps will run; what was asked for and cannot be is said in one line.

    Args:
        asked: auto | eager | graph | inductor.
        states: the runs of a pack, those from a checkpoint restored.
        model: what they train on.
        device: where it is.
    """
    cuda = device.type == "cuda"
    if asked == "eager" or (asked == "auto" and not cuda):
        return EAGER
    to_go = max(state.plan.steps - state.step for state in states)
    if asked == "auto" and to_go <= WORTH:
        return EAGER
    why = None if cuda or asked == "inductor" else f"a CUDA graph needs a GPU, this is {device.type}"
    if (why := why or _hindrance(states, model)) is not None:
        warnings.warn(f"train.compile={asked}: {why}; steps run eager", stacklevel=3)
        return EAGER
    if asked != "inductor":
        return Choice(CudaGraphs(device))
    why = "it does not go together with train.checkpointing" if states[0].plan.checkpointing else why_not(device)
    if why is not None:
        warnings.warn(f"train.compile=inductor: {why}; steps run {'as graph' if cuda else 'eager'}", stacklevel=3)
        return Choice(CudaGraphs(device)) if cuda else EAGER
    return Choice(CudaGraphs(device) if cuda else Rerun(), CompiledBase(model))


def _hindrance(states: Sequence[RunState], model: nn.Module) -> str | None:
    """Return why steps cannot be recorded, or None."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing puts random states back, which a graph cannot"
    acting = [type(state.run.rule).__qualname__ for state in states if state.run.rule and not state.run.rule.in_place]
    if acting:
        return f"{acting[0]} acts otherwise than by writing to tensors in place"
    return None
