"""Fresh classification heads: trained whole beside the adapters, one replica for each lane."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lorax.models.registry import Loaded


class LaneHead(nn.Module):
    """K replicas of one head; row block k of the batch goes through the k-th active replica.

    Replicas are fp32 (fp64 on an fp64 base) whatever the base is in: their optimiser steps would
    vanish in bf16.
    """

    def __init__(self, original: nn.Module, replicas: Sequence[nn.Module]):
        super().__init__()
        weight = next(original.parameters())
        self.dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.replicas = nn.ModuleList(replica.to(self.dtype) for replica in replicas)
        self.replicas.requires_grad_(True)
        self.original = (original,)  # in a tuple: kept, but no submodule
        self.active: Sequence[int] = range(len(replicas))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states, (rows, ...), to logits, each block of rows by its lane's replica."""
        wide = hidden if torch.is_autocast_enabled(hidden.device.type) else hidden.to(self.dtype)
        blocks = wide.chunk(len(self.active))
        return torch.cat([self.replicas[lane](block) for lane, block in zip(self.active, blocks, strict=True)])


class Head:
    """One lane's fresh head: what its optimiser trains and its checkpoint holds.

    Args:
        wrappers: the installed `LaneHead` of every head module, by the module's name.
        lane: which replica.
    """

    def __init__(self, wrappers: dict[str, LaneHead], lane: int):
        self.wrappers, self.lane = wrappers, lane

    def parameters(self) -> list[nn.Parameter]:
        """Return the lane's parameters, in order of name."""
        return [value for _, value in self._named()]

    def count_trainable(self) -> int:
        """Return the number of the head's parameters."""
        return sum(value.numel() for value in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the lane's tensors under the names they have in the model."""
        return {name: value.detach().clone() for name, value in self._named()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put saved tensors back."""
        with torch.no_grad():
            for name, value in self._named():
                value.copy_(state[name])

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (f"{name}.{key}", value)
            for name, wrapper in self.wrappers.items()
            for key, value in wrapper.replicas[self.lane].named_parameters()
        ]


def install_heads(loaded: Loaded, seeds: Sequence[int]) -> list[Head]:
    """Replace each fresh head of the model by replicas, lane k's drawn from `seeds[k]` alone.

    A lane's head is the same whether it is alone or one of K, and whichever method it sits beside.

    Args:
        loaded: `loaded.head` names the modules; none for generation.
        seeds: one for each lane.

    Returns:
        One `Head` a lane; [] if the model has no fresh head.
    """
    from lorax.models.hf import init_head

    modules = {name: loaded.model.get_submodule(name) for name in loaded.head}
    drawn: dict[str, list[nn.Module]] = {name: [] for name in modules}
    for seed in seeds:
        init_head(loaded.model, loaded.head, seed)
        for name, module in modules.items():
            drawn[name].append(copy.deepcopy(module))
    wrappers = {name: LaneHead(module, drawn[name]) for name, module in modules.items()}
    for name, wrapper in wrappers.items():
        _put(loaded.model, name, wrapper)
    return [Head(wrappers, lane) for lane in range(len(seeds))] if wrappers else []


def remove_heads(loaded: Loaded, head: Head | None = None) -> None:
    """Put plain modules back: the original ones, or those of `head`."""
    for name in loaded.head:
        wrapper = loaded.model.get_submodule(name)
        if isinstance(wrapper, LaneHead):
            _put(loaded.model, name, wrapper.original[0] if head is None else wrapper.replicas[head.lane])


@contextmanager
def plain_head(head: Head | None, loaded: Loaded) -> Iterator[None]:
    """Have one lane's head in the model as a plain module for a while, under its own name: for saving."""
    wrappers = {} if head is None else head.wrappers
    for name, wrapper in wrappers.items():
        _put(loaded.model, name, wrapper.replicas[head.lane])
    try:
        yield
    finally:
        for name, wrapper in wrappers.items():
            _put(loaded.model, name, wrapper)


@contextmanager
def heads_active(heads: Sequence[Head]) -> Iterator[None]:
    """Let the next forward passes have one block of rows for each of these heads, in this order."""
    wrappers = list(heads[0].wrappers.values()) if heads else []
    before = [wrapper.active for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.active = [head.lane for head in heads]
    try:
        yield
    finally:
        for wrapper, lanes in zip(wrappers, before, strict=True):
            wrapper.active = lanes


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
