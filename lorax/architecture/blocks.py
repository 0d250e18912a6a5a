"""A transformer's blocks and their parts: what attention ends in, what the feed-forward part begins and ends in.

Found by structure, not by class: a block is an element of a list of modules that has attention and linear layers beside
it, and no such element inside. So for Llama, GPT-2, BERT, T5, OPT, GPT-NeoX, Phi-3, ViT and Swin alike.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

_ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)
_CROSS = re.compile(r"cross|enc(oder)?_?(dec|att)", re.IGNORECASE)
_NORM = re.compile(r"norm$", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """Names of a block's parts in the model; None where it has none that is known."""

    attention: str | None
    """The last linear layer of self-attention: its output is what attention adds."""
    down: str | None
    """The last linear layer of the feed-forward part: its output is what that part adds."""
    feed_forward: str | None
    """The module that is the whole feed-forward part, with one tensor in and one out."""
    norm: str | None
    """The layer norm that stands beside `down` in one module, on the sum with what came in (post-norm: BERT)."""


def find_blocks(modules: Mapping[str, nn.Module], linear: Mapping[str, tuple[int, int]]) -> list[Block]:
    """Return the blocks of a model, in order.

    Args:
        modules: {name: module} of the whole model.
        linear: {name: (m, n)} of its linear layers, of any kind.
    """
    return [_block(name, *parts, modules, linear) for name, parts in _found(modules, linear).items()]


def block_names(modules: Mapping[str, nn.Module], linear: Collection[str]) -> list[str]:
    """Return the names of a model's blocks, in order; without attention (Mamba) those of its outermost lists of layers.

    Args:
        modules: {name: module} of the whole model.
        linear: the names of its linear layers, of any kind.
    """
    blocks = list(_found(modules, linear))
    if blocks:
        return blocks
    elements = [name for name in modules if _parent(name, modules, nn.ModuleList) is not None]
    holding = [name for name in elements if any(layer.startswith(f"{name}.") for layer in linear)]
    return [name for name in holding if not any(name.startswith(f"{other}.") for other in holding)]


def _found(
    modules: Mapping[str, nn.Module], linear: Collection[str]
) -> dict[str, tuple[dict[str, list[str]], list[str]]]:
    """Return {block: what `_parts` says of it}."""
    elements = [name for name in modules if _parent(name, modules, nn.ModuleList) is not None]
    inside = {name: [layer for layer in linear if layer.startswith(f"{name}.")] for name in elements}
    found = {name: parts for name in elements if (parts := _parts(name, inside[name])) is not None}
    outer = {name for name in found if any(other.startswith(f"{name}.") for other in found)}
    return {name: parts for name, parts in found.items() if name not in outer}


def _parts(name: str, layers: list[str]) -> tuple[dict[str, list[str]], list[str]] | None:
    """Return ({attention module: its linear layers}, the other linear layers) of an element that has both."""
    attention: dict[str, list[str]] = {}
    rest: list[str] = []
    for layer in layers:
        parts = layer.removeprefix(f"{name}.").split(".")[:-1]
        at = next((index for index, part in enumerate(parts) if _ATTENTION.search(part)), None)
        if at is None:
            rest.append(layer)
        else:
            attention.setdefault(".".join([name, *parts[: at + 1]]), []).append(layer)
    return (attention, rest) if attention and rest else None


def _block(
    name: str,
    attention: dict[str, list[str]],
    rest: list[str],
    modules: Mapping[str, nn.Module],
    linear: Mapping[str, tuple[int, int]],
) -> Block:
    if _has_experts(name, attention, modules):
        return Block(None, None, None, None)
    whole, down = _common(rest), rest[-1]
    own = [layer for top, layers in attention.items() if not _CROSS.search(top.rpartition(".")[2]) for layer in layers]
    outputs = [layer for layer in own if linear[layer][0] == linear[down][0]]
    alone = whole != name and not any(top.startswith(f"{whole}.") for top in attention)
    ready = alone and len(rest) > 1 and _takes_one(modules[whole])
    return Block(outputs[-1] if outputs else None, down, whole if ready else None, _norm_beside(down, name, modules))


def _has_experts(name: str, attention: Mapping[str, list[str]], modules: Mapping[str, nn.Module]) -> bool:
    """Whether the block beside its attention chooses among parts: a list of them, or a parameter with a matrix each."""
    for inner, module in modules.items():
        if not inner.startswith(f"{name}.") or any(f"{inner}.".startswith(f"{top}.") for top in attention):
            continue
        a_list = isinstance(module, nn.ModuleList) and not any(top.startswith(f"{inner}.") for top in attention)
        if a_list or any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
            return True
    return False


def _common(names: list[str]) -> str:
    """Return the name of the smallest module that holds all of these."""
    split = [name.split(".")[:-1] for name in names]
    shared = [parts[0] for parts in zip(*split, strict=False) if len(set(parts)) == 1]
    depth = next((i for i, parts in enumerate(zip(*split, strict=False)) if len(set(parts)) > 1), len(shared))
    return ".".join(shared[:depth])


def _takes_one(module: nn.Module) -> bool:
    """Whether a module is called with one tensor."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    needed = [each for each in parameters if each.default is each.empty and each.kind <= each.POSITIONAL_OR_KEYWORD]
    return len(needed) == 1


def _norm_beside(down: str, block: str, modules: Mapping[str, nn.Module]) -> str | None:
    parent = down.rpartition(".")[0]
    if parent == block:
        return None  # it may stand before the feed-forward part (OPT): the order is in the code alone
    beside = [name for name, child in modules[parent].named_children() if _NORM.search(type(child).__name__)]
    return f"{parent}.{beside[0]}" if len(beside) == 1 else None


def _parent(name: str, modules: Mapping[str, nn.Module], kind: type[nn.Module]) -> nn.Module | None:
    """Return the module that holds this one, where it is of a kind."""
    parent = modules.get(name.rpartition(".")[0]) if name else None
    return parent if isinstance(parent, kind) else None
