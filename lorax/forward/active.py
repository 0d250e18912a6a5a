"""Which lanes the next forward passes are for: their adapters and heads, in one block of rows each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.forward.heads import heads_active

if TYPE_CHECKING:
    from lorax.adapters.install import Adapters
    from lorax.forward.batch import Batch
    from lorax.forward.heads import Head


@contextmanager
def active(adapters: Sequence[Adapters], heads: Sequence[Head | None] = ()) -> Iterator[None]:
    """Restrict the forward to these lanes: row block k of a batch is the k-th lane's.

    Args:
        adapters: lanes installed together, or a single one.
        heads: their classification heads, in the same order; None where the model has none.
    """
    with ExitStack() as stack:
        pack = getattr(adapters[0], "pack", None) if adapters else None
        if pack is not None:
            stack.enter_context(pack.active([lane.number for lane in adapters]))
        stack.enter_context(heads_active([head for head in heads if head is not None]))
        yield


def set_widths(adapters: Sequence[Adapters], widths: Sequence[dict[int, int]]) -> None:
    """Tell each lane how wide its rows of the next batch are when it is alone.

    Padding changes no result, but the shape that a dropout mask is drawn in.

    Args:
        adapters: the active lanes.
        widths: for each, {padded tokens: its own tokens}.
    """
    pack = getattr(adapters[0], "pack", None) if adapters else None
    if pack is not None:
        pack.widths = {lane.number: width for lane, width in zip(adapters, widths, strict=True)}


def set_live(adapters: Sequence[Adapters], batch: Batch | None) -> None:
    """Tell the layers which tokens of the next batch are no padding; None: all count."""
    pack = getattr(adapters[0], "pack", None) if adapters else None
    if pack is not None:
        known = batch is not None and batch.live is not None
        pack.unpadded = (tuple(batch.inputs["input_ids"].shape), batch.live) if known else None


@contextmanager
def steady(adapters: Sequence[Adapters]) -> Iterator[None]:
    """Promise that nothing trains inside, so that what layers derive from their tensors may be kept."""
    pack = getattr(adapters[0], "pack", None) if adapters else None
    with nullcontext() if pack is None else pack.frozen_factors():
        yield


def one_base(adapters: Sequence[Adapters]) -> None:
    """Refuse lanes that were not installed together.

    Raises:
        UserError: several lanes without a common pack.
    """
    packs = {id(getattr(lane, "pack", None)) for lane in adapters}
    if len(adapters) > 1 and (len(packs) > 1 or getattr(adapters[0], "pack", None) is None):
        raise UserError(f"{len(adapters)} lanes that were not installed together cannot be trained at once")
