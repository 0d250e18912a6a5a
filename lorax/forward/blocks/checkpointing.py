"""Activation checkpointing: of each block only its inputs are kept, and the backward pass computes the rest again.

What a layer's backward pass reads is then there for one block at a time. The same operations on the same numbers give
the same gradients, bit for bit; dropout masks are drawn again from the same counters.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.kinds import is_linear
from lorax.architecture.blocks import block_names
from lorax.errors import UserError
from lorax.forward.active import pack_of

if TYPE_CHECKING:
    from lorax.adapters.face import Trainable
    from lorax.adapters.pack_state import PackState


def blocks(model: nn.Module) -> list[str]:
    """Return the names of the parts of a model, with adapters in it or without, that are computed again one by one.

    Raises:
        UserError: it has no list of blocks.
    """
    modules = dict(model.named_modules())
    parts = {name: module for name, module in modules.items() if name}
    linear = [name for name, module in parts.items() if isinstance(module, AdaptedLayer) or is_linear(module)]
    found = block_names(modules, linear)
    if not found:
        raise UserError(f"train.checkpointing: {type(model).__name__} has no list of blocks; set it to false")
    return found


@contextmanager
def checkpointed(model: nn.Module, adapters: Sequence[Trainable] = ()) -> Iterator[None]:
    """Checkpoint every block inside; what is differentiated must be differentiated inside too.

    A block that is given a cache of keys and values is computed as ever, and keeps all.

    Args:
        model: any.
        adapters: those in it.

    Raises:
        UserError: the model has no list of blocks.
    """
    pack = pack_of(adapters)
    with ExitStack() as stack:
        for name in blocks(model):
            stack.enter_context(_wrapped(model.get_submodule(name), pack))
        yield


@contextmanager
def _wrapped(block: nn.Module, pack: PackState | None) -> Iterator[None]:
    """Have one block keep only what it is called with."""
    before, forward = vars(block).get("forward"), block.forward
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing draws from global states

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), nullcontext() if pack is None else pack.recomputation()

    @functools.wraps(forward)
    def kept(*args: Any, **named: Any) -> Any:
        # What fills a cache would fill it again.
        if not torch.is_grad_enabled() or named.get("past_key_values") is not None:
            return forward(*args, **named)
        return checkpoint(forward, *args, context_fn=contexts, **options, **named)

    block.forward = kept
    try:
        yield
    finally:
        del block.forward
        if before is not None:
            block.forward = before
