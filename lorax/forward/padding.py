"""Which places of a batch hold a token, and of how many examples: for means over tokens that padding has no part in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def token_counts(inputs: Mapping[str, Tensor], positions: Tensor | None, counts: Sequence[int]) -> list[Tensor]:
    """Return, for each grid of input tokens (rows, tokens), of how many examples each position holds a token.

    Padding counts 0, a token 1, and a token of a beginning that R examples share R: the counts do not depend on how
    examples are laid out. Where no mask says so, an example ends where its last label is predicted.

    Args:
        inputs: of a `Batch` whose beginnings are not cached (`prefix` is None).
        positions: of the batch.
        counts: of the batch.

    Returns:
        One tensor; for an encoder-decoder the encoder's and the decoder's; none where the inputs are no tokens.
    """
    mask = inputs.get("attention_mask")
    if "input_ids" not in inputs or (mask is None and positions is None):
        return []
    if mask is not None and mask.ndim == 2:
        if "decoder_input_ids" not in inputs or positions is None:
            return [mask]
        decoder = torch.zeros_like(inputs["decoder_input_ids"])
        return [mask, decoder.flatten().index_fill(0, positions, 1).view_as(decoder)]
    assert positions is not None
    rows, width = inputs["input_ids"].shape
    ends = positions[torch.tensor(counts, device=positions.device).cumsum(0) - 1]
    if mask is None:
        return [torch.arange(width, device=ends.device) <= (ends % width)[:, None]]
    seen = mask[:, 0].flatten(0, 1)[ends]  # what an example's last token sees is the example
    return [torch.zeros(rows, width, device=ends.device).index_add(0, ends // width, seen.float())]
