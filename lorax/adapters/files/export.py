"""Adapters as `lorax.exports` takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorax.adapters import core, weights
from lorax.adapters.adapted import AdaptedLayer
from lorax.adapters.experts.adapted import AdaptedExpert
from lorax.adapters.files.format import trained_beside
from lorax.adapters.linear import AdaptedLinear
from lorax.adapters.low_rank import LowRankAdapter
from lorax.adapters.vectors.magnitude import MagnitudeAdapter
from lorax.errors import UserError
from lorax.exports.adapted import AdaptedModel, Expert, LowRank
from lorax.exports.merged import output_of, refuse_other_output, refuse_peft, write_model

if TYPE_CHECKING:
    from lorax.adapters.handle import Adapters


@torch.no_grad()
def adapted_model(adapters: Adapters) -> AdaptedModel:
    """Return what an export needs to know.

    Raises:
        UserError: an adapter without a low-rank form, or at a layer whose weight is no plain matrix.
    """
    named = adapters.model.named_modules(remove_duplicate=False)
    return AdaptedModel(
        model=adapters.model,
        layers={name: _low_rank(adapters, name) for name in adapters.names()},
        places={place: module.name for place, module in named if isinstance(module, AdaptedLayer)},
        experts={
            name: Expert(name.rpartition(".")[0], layer.index, len(layer.stack))
            for name, layer in adapters.installation.layers.items()
            if isinstance(layer, AdaptedExpert)
        },
        beside=trained_beside(adapters),
        as_base=partial(_as_base, adapters),
        as_adapted=lambda: adapters.pack.active([adapters.number]),
    )


def low_rank_pair(adapter: LowRankAdapter) -> tuple[Tensor, Tensor]:
    """Return (B', A') with B' A' = W' - W0 of exact arithmetic; eta is in B'.

    Of recentred factors it is [B - B0, B0] [A ; A - A0], whose differences are formed in the factors' precision;
    the other form, [B, -B0] [A ; A0], loses the update in the rounding of its file.
    """
    products = [(core.left_multiply(B, M), A) for B, M, A in adapter.terms(carried=adapter.shifts_base)]
    return adapter.eta * torch.cat([B for B, _ in products], 1), torch.cat([A for _, A in products])


def export_merged(adapters: Adapters, path: str | Path, verify: bool | None = None, tokenizer: Any = None) -> None:
    """Write a plain checkpoint of the base model with W' in its weights, in the base's dtype.

    What was trained beside the adapters is in it, tied embeddings once; a model that generates gets its
    generation settings too.

    Args:
        adapters: what to merge; they are as before afterwards.
        path: the folder, made if missing; it appears when the checkpoint is verified. Weights of an older
            checkpoint there are replaced.
        verify: read the folder back, by `from_pretrained` where the model has it, and compare every tensor; on
            small models also one output with that of the adapted model. None: up to 5e8 parameters, else one
            line says that it was not done.
        tokenizer: what has `save_pretrained`, to lie in the same folder. None: that of the folder, or of the hub's
            cache, that the model was loaded from.

    Raises:
        UserError: a weight is shared, so that it cannot hold W'; several lanes; the folder holds an adapter in
            PEFT's format, which would be added again; it cannot be written, reads back as something else, or
            computes something else. No folder is left then.
    """
    refuse_peft(path)
    was = adapters.merged
    ours = None if verify is False or was else output_of(adapters.model)
    adapters.merge()
    try:
        with adapters.installation.plain():
            if ours is not None:
                refuse_other_output(adapters.model, ours)
            write_model(adapters.model, path, verify, tokenizer)
    finally:
        if not was:
            adapters.unmerge()


def _low_rank(adapters: Adapters, name: str) -> LowRank:
    layer, adapter = adapters.layer(name), adapters.layer_adapter(name)
    if isinstance(adapter, MagnitudeAdapter) and isinstance(layer, AdaptedLinear) and layer.kind.plain:
        B, A = adapter.eta * adapter.B.detach(), adapter.A.detach()
        lengths = adapter.magnitude.detach()
        return LowRank(B, A, lambda: B @ A, layer.kind.matrix, layer.kind.transposed, rounded=False, lengths=lengths)
    factors = adapter.factors()
    if factors is None or not isinstance(layer, AdaptedLinear):
        merged = "; export_merged writes W' itself" if isinstance(layer, AdaptedLinear) else ""
        raise UserError(f"cannot export {name}: {adapter.not_exported}{merged}")
    if not layer.kind.plain and not isinstance(layer, AdaptedExpert):
        raise UserError(f"cannot export {name}: PEFT's LoRA stores a layer of its kind in another shape")
    if isinstance(adapter, LowRankAdapter):
        B, A = low_rank_pair(adapter)
        if adapter.header["kind"] == "diagonal":
            B, A = _without_zeros(B, A)
    else:
        B, A = factors.eta * core.left_multiply(factors.B, factors.M), factors.A
    fold = adapters.recenter == "fold"
    delta = partial(weights.delta, layer, adapter, fold)
    return LowRank(B, A, delta, layer.kind.matrix, layer.kind.transposed, rounded=fold and adapter.shifts_base)


def _without_zeros(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out the components that a diagonal core has masked; of a core that is all zero (untrained) none."""
    kept = B.ne(0).any(0).nonzero()[:, 0]
    return (B[:, kept], A[kept]) if len(kept) else (B, A)


@contextmanager
def _as_base(adapters: Adapters) -> Iterator[None]:
    """Have the base model's modules, with W0 in every weight."""
    with adapters.installation.plain(), ExitStack() as stack:
        for layer in adapters.installation.layers.values():
            if isinstance(layer, AdaptedLinear) and layer.changed:
                stack.enter_context(layer.as_before())
        yield
