"""Prefix trees: rows that begin alike, computed as one sequence that holds their beginning once.

A tree is the common beginning of some rows followed by what is left of each. A token attends to the
beginning and to its own row, never to another row:

    tokens      beginning . . . . | rest of row 1 | rest of row 2 . . | rest of row 3
    positions   0 1 2 3 4         | 5 6 7         | 5 6 7 8           | 5 6
    sees                            beginning, 1    beginning, 2        beginning, 3

So every row gets the outputs, and every weight the gradient, that whole rows give (up to rounding). Compared
with running the beginning first and the rests on its keys and values, it saves a second pass through all
weights, and there is no padding within a lane.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from lorax.forward.batch import Encoded, batch_of, pad_causal, pad_id, shared_prefix, unpadded_tokens
from lorax.forward.readout import caches_by_position, device_of
from lorax.models.modality import Batch, by_lane

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorax.models.registry import Loaded

LONGEST = 512
"""Tokens of a tree at most: the attention scores that its mask throws away grow with their square."""


def lay_out(
    rows: Sequence[Encoded], loaded: Loaded, lanes: int = 1, share: bool = True, single_pass: bool = False
) -> Batch:
    """Return the batch of some rows, with their common beginning once for each lane where that is exact and pays.

    That is a tree where the model takes one and it is short enough, else `Batch.prefix`, else plain rows.

    Args:
        rows: examples of a causal model; those of a lane next to each other, equally many each.
        loaded: model and tokenizer.
        lanes: K.
        share: False computes every row whole: the same result, slowly.
        single_pass: no `Batch.prefix`. With one, all rests are differentiated before the beginning, so the
            gradients of all weights are held at once.
    """
    device = device_of(loaded.model)
    prefix = shared_prefix(rows, lanes, device) if share and caches_by_position(loaded.model) else 0
    if prefix and takes_masks(loaded.model) and max(map(sum, _rests(rows, prefix, lanes))) + prefix <= LONGEST:
        return tree(rows, loaded.tokenizer, prefix, lanes, device)
    return pad_causal(rows, pad_id(loaded.tokenizer), 0 if single_pass else prefix, lanes, device)


def size(rows: Sequence[Encoded], model: PreTrainedModel) -> int:
    """Return how many tokens, padding included, `lay_out` runs for the rows of one lane in a single pass."""
    prefix = shared_prefix(rows, 1, device_of(model)) if caches_by_position(model) else 0
    together = prefix + sum(_rests(rows, prefix, 1)[0])
    return together if prefix and takes_masks(model) and together <= LONGEST else len(rows) * max(map(len, rows))


def takes_masks(model: PreTrainedModel) -> bool:
    """Return whether the model only hands a mask (rows, 1, T, T) on to its attention, and counts positions from 0.

    Not so where attention is biased by a count of the mask (ALiBi), where the mask also weighs a router's
    loss, or where positions begin after a padding index (RoBERTa and its kin).
    """
    config, module = model.config, sys.modules[type(model.base_model).__module__]
    kernel = getattr(config, "_attn_implementation", None)
    if not hasattr(module, "create_causal_mask") or kernel not in ("sdpa", "sdpa_fp32"):
        return False
    if getattr(config, "alibi", False) or getattr(config, "output_router_logits", False):
        return False
    embeddings = {name: part for name, part in model.named_modules() if isinstance(part, nn.Embedding)}
    return not any("position" in name and part.padding_idx is not None for name, part in embeddings.items())


def tree(
    rows: Sequence[Encoded],
    tokenizer: PreTrainedTokenizerBase,
    prefix: int,
    lanes: int = 1,
    device: torch.device | str = "cpu",
) -> Batch:
    """Return one tree for each lane, padded on the right to the longest.

    Args:
        rows: examples of a causal model; those of a lane next to each other, equally many each.
        tokenizer: names the token to pad with.
        prefix: tokens that all of them begin with.
        lanes: K.
        device: where the batch goes.

    Returns:
        Inputs with `input_ids` (K, T), `position_ids` (K, T) and a boolean `attention_mask` (K, 1, T, T).
    """
    rests = _rests(rows, prefix, lanes)
    lengths = [prefix + sum(lengths) for lengths in rests]
    width = max(lengths)
    ids = np.full((lanes, width), pad_id(tokenizer), dtype=np.int64)
    places = np.zeros((lanes, width), dtype=np.int64)
    owners = np.full((lanes, width), -1)  # whose a token is; 0: the beginning's; 1, 2, ...: a row's; -1: padding
    ids[:, :prefix] = rows[0].ids[:prefix]
    places[:, :prefix] = np.arange(prefix)
    owners[:, :prefix] = 0
    positions: list[int] = []
    for lane, block in enumerate(by_lane(rows, lanes)):
        starts = accumulate(rests[lane][:-1], initial=prefix)
        for number, (row, start, length) in enumerate(zip(block, starts, rests[lane], strict=True), 1):
            part = slice(start, start + length)
            ids[lane, part] = row.ids[prefix:] + row.continuation
            places[lane, part] = np.arange(prefix, prefix + length)
            owners[lane, part] = number
            first = lane * width + start + len(row.ids) - prefix - 1
            predicted = range(first, first + len(row.labels))
            positions += (np.array(predicted) + row.shifts).tolist() if row.given else predicted
    targets = np.array([label for row in rows for label in row.labels])
    parts = {"input_ids": ids, "position_ids": places, "attention_mask": owners, "positions": np.array(positions)}
    counts = [len(row.labels) for row in rows]
    batch = batch_of({**parts, "targets": targets, **unpadded_tokens(lengths, width)}, counts, device)
    batch.inputs["attention_mask"] = _mask(batch.inputs["attention_mask"])
    return batch


def _mask(owners: Tensor) -> Tensor:
    """Return which key (last axis) each query may see: itself and earlier ones, of the beginning or of its own row."""
    query, key = owners[:, None, :, None], owners[:, None, None, :]
    return ((key == query) | (key == 0)).tril()


def _rests(rows: Sequence[Encoded], prefix: int, lanes: int) -> list[list[int]]:
    """Return, for each lane, how many tokens of each of its rows follow the beginning."""
    return by_lane([len(row) - prefix - (1 if row.labels else 0) for row in rows], lanes)
