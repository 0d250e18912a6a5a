"""Fresh heads (of classes): trained whole beside the adapters, a replica for each lane of a pack."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorax.models.fresh_head import init_head

if TYPE_CHECKING:
    from lorax.models.registry import Loaded


class PackedHead(nn.Module):
    """K replicas of one head; block k of the rows of a batch goes through the k-th active replica.

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
        """The active lanes, in the order of their blocks of rows."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (rows, ..., n) to logits (rows, ..., classes), each block of rows by its lane's replica."""
        wide = hidden if torch.is_autocast_enabled(hidden.device.type) else hidden.to(self.dtype)
        blocks = wide.chunk(len(self.active))
        return torch.cat(
            _as_wide([self.replicas[lane](block) for lane, block in zip(self.active, blocks, strict=True)])
        )


def _as_wide(outputs: list[Tensor]) -> list[Tensor]:
    """Return logits of tasks with different numbers of classes in one width: classes that a task lacks get p = 0."""
    most = max(output.shape[-1] for output in outputs)
    lowest = torch.finfo(outputs[0].dtype).min
    return [
        output if output.shape[-1] == most else nn.functional.pad(output, (0, most - output.shape[-1]), value=lowest)
        for output in outputs
    ]


class Head:
    """The fresh head of one run, which its optimiser trains and its checkpoint holds.

    Args:
        packed: the installed `PackedHead` of every head module, by the module's name.
        lane: of the run; its replica has this index.
    """

    def __init__(self, packed: dict[str, PackedHead], lane: int):
        self.packed, self.lane = packed, lane

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, in order of name."""
        return [value for _, value in self._named()]

    def count_trainable(self) -> int:
        """Return the number of the head's parameters."""
        return sum(value.numel() for value in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors under the names that they have in the model."""
        return {name: value.detach().clone() for name, value in self._named()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put saved tensors back."""
        with torch.no_grad():
            for name, value in self._named():
                value.copy_(state[name])

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (f"{name}.{key}", value)
            for name, packed in self.packed.items()
            for key, value in packed.replicas[self.lane].named_parameters()
        ]


def install_heads(loaded: Loaded, seeds: Sequence[int], bare: Sequence[Loaded] = ()) -> list[Head]:
    """Replace each fresh head of the model by K replicas; that of lane k is drawn from `seeds[k]` alone.

    A run's head does not depend on the other runs of the pack, nor on the method that it trains beside.

    Args:
        loaded: `loaded.head` names the modules; none for generation.
        seeds: one for each lane.
        bare: for each lane the skeleton of the model with that lane's classes, where lanes have tasks of their own;
            its head modules are given values. None: all lanes have the classes of the loaded model.

    Returns:
        One `Head` for each lane; [] if the model has no fresh head.
    """
    modules = {name: loaded.model.get_submodule(name) for name in loaded.head}
    drawn: dict[str, list[nn.Module]] = {name: [] for name in modules}
    for lane, seed in enumerate(seeds):
        source = made_real(bare[lane], modules) if bare else loaded
        init_head(source.model, loaded.head, seed)
        for name in modules:
            drawn[name].append(copy.deepcopy(source.model.get_submodule(name)))
    packed = {name: PackedHead(module, drawn[name]) for name, module in modules.items()}
    for name, module in packed.items():
        _put(loaded.model, name, module)
    return [Head(packed, lane) for lane in range(len(seeds))] if packed else []


def made_real(bare: Loaded, like: Mapping[str, nn.Module]) -> Loaded:
    """Give the head modules of a skeleton memory, with the dtype and place of other ones of the same names."""
    for name, module in like.items():
        weight = next(module.parameters())
        bare.model.get_submodule(name).to_empty(device=weight.device).to(weight.dtype)
    return bare


@contextmanager
def head_of(bare: Loaded, loaded: Loaded) -> Iterator[None]:
    """Let the model have the head modules of its skeleton, which may have other classes, inside the block."""
    before = {name: loaded.model.get_submodule(name) for name in loaded.head}
    for name in before:
        _put(loaded.model, name, made_real(bare, before).model.get_submodule(name))
    try:
        yield
    finally:
        for name, module in before.items():
            _put(loaded.model, name, module)


def remove_heads(loaded: Loaded) -> None:
    """Put the original heads back as plain modules."""
    for name in loaded.head:
        module = loaded.model.get_submodule(name)
        if isinstance(module, PackedHead):
            _put(loaded.model, name, module.original[0])


@contextmanager
def plain_head(head: Head | None, loaded: Loaded) -> Iterator[None]:
    """Put one run's head into the model as a plain module, under its usual name, inside the block: for saving."""
    replicas = {} if head is None else {name: packed.replicas[head.lane] for name, packed in head.packed.items()}
    packed = {name: loaded.model.get_submodule(name) for name in replicas}
    for name, module in replicas.items():
        _put(loaded.model, name, module)
    try:
        yield
    finally:
        for name, module in packed.items():
            _put(loaded.model, name, module)


@contextmanager
def heads_active(heads: Sequence[Head]) -> Iterator[None]:
    """Send block k of the rows through the k-th of these heads inside the block."""
    packed = list(heads[0].packed.values()) if heads else []
    before = [module.active for module in packed]
    for module in packed:
        module.active = [head.lane for head in heads]
    try:
        yield
    finally:
        for module, lanes in zip(packed, before, strict=True):
            module.active = lanes


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
