"""Recorders: work that is recorded once and then done again on the same tensors, without Python in between.

On a GPU a step at small batches waits for Python, which hands it thousands of operations; a CUDA graph hands them over
at once. What is recorded must read and write tensors that stay where they are, and must not wait for the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch import nn

    from lorax.training.state import RunState

WORTH = 20
"""Steps to go from which `auto` records: to record a shape of batch costs about what so many recorded steps save."""


class Recorder(Protocol):
    """Records work."""

    def open(self) -> AbstractContextManager[object]:
        """Surround all work, recorded or not, between the first and the last."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what does the work again on the tensors of now.

        Args:
            work: it has been done once before, so that all that it keeps between calls is there. Whether recording it
                does it as well is not said.
        """
        ...


class CudaGraphs:
    """One CUDA graph for each piece of work; all share their memory, as one runs after the other.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.pool: Any = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Do everything on one stream of our own: the default one cannot be recorded."""
        before = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(before)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            before.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the work; it is not done meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            work()
        self.pool = graph.pool()
        return graph.replay


class Rerun:
    """Calls the work again: everything of a recorded step but the recording, on any device."""

    def open(self) -> AbstractContextManager[object]:
        """Nothing."""
        return nullcontext()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return the work."""
        return work


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
    return ("graph" if asked == "auto" else asked), CudaGraphs(device)


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
