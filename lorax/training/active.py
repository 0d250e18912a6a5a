"""Which lanes the next forward passes are for: their adapters and heads, in one block of rows each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.training.heads import heads_active

if TYPE_CHECKING:
    from lorax.adapters.install import Adapters
    from lorax.training.heads import Head


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


@contextmanager
def steady(adapters: Sequence[Adapters]) -> Iterator[None]:
    """Promise that nothing trains inside, so that what layers derive from their tensors may be kept."""
    pack = getattr(adapters[0], "pack", None) if adapters else None
    with nullcontext() if pack is None else pack.steady():
        yield


def one_base(adapters: Sequence[Adapters]) -> None:
    """Refuse lanes that were not installed together.

    Raises:
        UserError: several lanes without a common pack.
    """
    packs = {id(getattr(lane, "pack", None)) for lane in adapters}
    if len(adapters) > 1 and (len(packs) > 1 or getattr(adapters[0], "pack", None) is None):
        raise UserError(f"{len(adapters)} lanes that were not installed together cannot be trained at once")
