"""Which adapters and heads the next forward passes go through, and facts of the batch that their layers need.

Adapters installed together share a pack. A batch holds equally many rows for each active lane of the
pack, those of a lane next to each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.forward.heads import heads_active
from lorax.forward.padding import token_counts

if TYPE_CHECKING:
    from torch import Tensor

    from lorax.adapters.face import Trainable
    from lorax.adapters.pack_state import PackState
    from lorax.forward.heads import Head
    from lorax.models.modality import Batch


@contextmanager
def active(adapters: Sequence[Trainable], heads: Sequence[Head | None] = ()) -> Iterator[None]:
    """Restrict the model to these adapters: block k of the rows of a batch goes through the k-th of them.

    Args:
        adapters: of one pack, or a single one; none for the model as it is.
        heads: their heads, in the same order; None where the model has no fresh head.
    """
    pack = pack_of(adapters)
    with ExitStack() as stack:
        if pack is not None:
            stack.enter_context(pack.active([each.number for each in adapters]))
        stack.enter_context(heads_active([head for head in heads if head is not None]))
        yield


def masks_from(adapters: Sequence[Trainable], keys: Tensor | None) -> AbstractContextManager[None]:
    """Have the dropout masks of one forward and backward pass drawn from one number a lane; see `PackState`."""
    pack = pack_of(adapters)
    return nullcontext() if pack is None else pack.masks_from(keys)


def set_unpadded(adapters: Sequence[Trainable], batch: Batch | None) -> None:
    """Tell the layers which tokens of the next batch are no padding, so that they may leave out the others.

    Args:
        adapters: the active ones.
        batch: None: every token counts.
    """
    pack = pack_of(adapters)
    if pack is not None:
        pack.unpadded = None
        if batch is not None and batch.unpadded is not None:
            rows, tokens = batch.inputs["input_ids"].shape
            pack.unpadded = ((rows, tokens), batch.unpadded)


def set_token_counts(adapters: Sequence[Trainable], batch: Batch | None) -> None:
    """Tell the adapters of how many examples each place of a batch holds a token, for means over tokens.

    Args:
        adapters: the active ones.
        batch: None: they are told nothing, and each place counts once.

    Raises:
        UserError: the batch has two grids of tokens.
    """
    pack = pack_of(adapters)
    if pack is not None:
        counts = [] if batch is None else token_counts(batch.inputs, batch.positions, batch.counts)
        if len(counts) > 1:
            raise UserError("init.balance: an encoder-decoder has two grids of tokens, so padding is not known; use 0")
        pack.token_counts = counts[0] if counts else None


def frozen_factors(adapters: Sequence[Trainable]) -> AbstractContextManager[None]:
    """Promise that nothing trains inside, so that layers may keep what they derive from their tensors."""
    pack = pack_of(adapters)
    return nullcontext() if pack is None else pack.frozen_factors()


def pack_of(adapters: Sequence[Trainable]) -> PackState | None:
    """Return the pack that adapters share; None where there are none, or where the whole model trains.

    Raises:
        UserError: several that were not installed together.
    """
    packs = {id(each.pack): each.pack for each in adapters}
    pack = next(iter(packs.values()), None)
    if len(adapters) > 1 and (len(packs) > 1 or pack is None):
        raise UserError(f"{len(adapters)} adapters that were not installed together cannot share a batch")
    return pack
