"""Recorders: work that is recorded once and then done again on the same tensors, without Python in between.

On a GPU a step at small batches waits for Python, which hands it thousands of operations; a CUDA graph hands them over
at once. What is recorded must read and write tensors that stay where they are, and must not wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch


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
