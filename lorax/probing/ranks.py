"""Calibration over several processes (torch.distributed): the batches of all ranks count, and all hold the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lorax.errors import UserError

_own = [False]
"""Whether this process starts runs of its own; of the whole process, since layers are looked at in threads."""


def several() -> bool:
    """Whether this process is one of several ranks that start a run together."""
    return not _own[0] and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def on_its_own() -> Iterator[None]:
    """Start runs of this process's own inside: other ranks have others, and their batches are not this run's."""
    before, _own[0] = _own[0], True
    try:
        yield
    finally:
        _own[0] = before


@contextmanager
def together(what: Any) -> Iterator[None]:
    """Run a part that may fail; where it fails on one rank, it does on all, and none waits for ever.

    Args:
        what: plain data that must agree on all ranks (the layers' names).

    Raises:
        UserError: another rank's failure, or ranks that do not agree; this rank's own is raised as it is.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if several():
        said: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(said, (first_line(error) if error else None, what))
        for rank, (line, other) in enumerate(said):
            if line is not None and error is None:
                error = UserError(f"rank {rank}: {line}")
            elif other != what and error is None:
                error = UserError(f"rank {rank} adapts other layers than rank {dist.get_rank()}")
    if error is not None:
        raise error


def first_line(error: Exception) -> str:
    """Return an error for another rank's message."""
    text = next(iter(str(error).splitlines()), "")
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:200]}"


def add_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, the same bits on all of them."""
    for tensor in tensors:
        there = tensor.to(_place())
        dist.all_reduce(there)
        tensor.copy_(there)


@torch.no_grad()
def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by that of rank 0: a decomposition may differ in its last bits between machines."""
    for tensor in tensors:
        there = tensor.detach().to(_place(), copy=True).contiguous()
        dist.broadcast(there, 0)
        tensor.copy_(there)


def _place() -> torch.device:
    """Return where the backend wants its tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
