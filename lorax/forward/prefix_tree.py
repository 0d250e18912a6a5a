"""Rows that begin alike, as one sequence: the beginning once, then the rest of each row, blind to the other rows.

    beginning | rest of row 1 | rest of row 2 | ...      positions count on from the beginning in every rest

A token attends to the beginning and to its own row up to itself, so every row gets the outputs, and every weight
the gradient, that whole rows give (up to rounding). Against running the beginning first and the rests on its keys
and values it saves a pass over all weights for a few tokens, and there is no padding within a lane.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorax.forward.batch import Batch, Encoded, collate, live_tokens, pad_id, shared_prefix
from lorax.forward.readout import caches_plainly

if TYPE_CHECKING:
    from lorax.models.registry import Loaded

LONGEST = 512
"""Tokens of a sequence: the scores that the mask throws away grow with their square."""


def lay_out(rows: Sequence[Encoded], loaded: Loaded, lanes: int = 1, share: bool = True, cached: bool = True) -> Batch:
    """Return the batch of some rows, what they begin with computed once a lane where that is exact and pays.

    Args:
        rows: the examples; those of a lane next to each other, equally many each.
        loaded: kind of model, tokenizer, device.
        lanes: K.
        share: False computes every row whole (the slow twin).
        cached: whether the beginning may also be run first and the rests on its keys and values, where one
            sequence will not do. All rests are differentiated before it then, so all weights' gradients meet.
    """
    device = next(loaded.model.parameters()).device
    prefix = shared_prefix(rows, lanes, device) if share and caches_plainly(loaded) else 0
    if prefix and takes_masks(loaded) and max(map(sum, _lengths(rows, prefix, lanes))) + prefix <= LONGEST:
        return tree(rows, loaded, prefix, lanes).to(device)
    return collate(rows, loaded, prefix if cached else 0, lanes).to(device)


def size(rows: Sequence[Encoded], loaded: Loaded) -> int:
    """Return how many tokens, padding included, `lay_out` runs for the rows of one lane without cached beginnings."""
    device = next(loaded.model.parameters()).device
    prefix = shared_prefix(rows, 1, device) if caches_plainly(loaded) else 0
    together = prefix + sum(_lengths(rows, prefix, 1)[0])
    return together if prefix and takes_masks(loaded) and together <= LONGEST else len(rows) * max(map(len, rows))


def takes_masks(loaded: Loaded) -> bool:
    """Say whether the model hands a mask of (rows, 1, T, T) on to its attention and nothing else, and counts from 0.

    Not so where attention is biased by a count of the mask (ALiBi), the mask also weighs a router's loss, or
    positions begin after a padding index (RoBERTa and its kin).
    """
    config, module = loaded.model.config, sys.modules[type(loaded.model.base_model).__module__]
    kernel = getattr(config, "_attn_implementation", None)
    if not hasattr(module, "create_causal_mask") or kernel not in ("sdpa", "sdpa_fp32"):
        return False
    if getattr(config, "alibi", False) or getattr(config, "output_router_logits", False):
        return False
    tables = {name: part for name, part in loaded.model.named_modules() if isinstance(part, nn.Embedding)}
    return not any("position" in name and part.padding_idx is not None for name, part in tables.items())


def tree(rows: Sequence[Encoded], loaded: Loaded, prefix: int, lanes: int = 1) -> Batch:
    """Return one sequence a lane, padded on the right to the longest.

    Args:
        rows: examples of a causal model; those of a lane next to each other.
        loaded: the tokenizer.
        prefix: how many tokens all of them begin with.
        lanes: K.

    Returns:
        Inputs with `input_ids` (K, T), `position_ids` (K, T) and a boolean `attention_mask` (K, 1, T, T).
    """
    lengths = _lengths(rows, prefix, lanes)
    widest = max(prefix + sum(own) for own in lengths)
    ids = torch.full((lanes, widest), pad_id(loaded.tokenizer))
    places = torch.zeros(lanes, widest, dtype=torch.long)
    owner = torch.full((lanes, widest), -1)  # 0: the beginning; 1, 2, ...: a row; -1: padding
    positions: list[int] = []
    for lane, own in enumerate(lengths):
        ids[lane, :prefix] = torch.tensor(rows[0].ids[:prefix])
        places[lane, :prefix] = torch.arange(prefix)
        owner[lane, :prefix] = 0
        start = prefix
        for number, length in enumerate(own):
            row, part = rows[lane * len(own) + number], slice(start, start + length)
            ids[lane, part] = torch.tensor(row.ids[prefix:] + row.labels[:-1])
            places[lane, part] = torch.arange(prefix, prefix + length)
            owner[lane, part] = number + 1
            first = lane * widest + start + len(row.ids) - prefix - 1
            positions += range(first, first + len(row.labels))
            start += length
    inputs = {"input_ids": ids, "position_ids": places, "attention_mask": _mask(owner)}
    targets = torch.tensor([label for row in rows for label in row.labels])
    live = live_tokens(torch.tensor([prefix + sum(own) for own in lengths]), widest)
    return Batch(inputs, torch.tensor(positions), targets, [len(row.labels) for row in rows], live=live)


def _mask(owner: Tensor) -> Tensor:
    """Return which key (last axis) each query may see: earlier or itself, and of the beginning or of its own row."""
    query, key = owner[:, None, :, None], owner[:, None, None, :]
    return ((key == query) | (key == 0)).tril()


def _lengths(rows: Sequence[Encoded], prefix: int, lanes: int) -> list[list[int]]:
    """Return, for each lane, how many tokens of each of its rows follow the beginning."""
    own = [len(row.ids) - prefix + max(0, len(row.labels) - 1) for row in rows]
    block = len(rows) // lanes
    return [own[start : start + block] for start in range(0, len(own), block)]
