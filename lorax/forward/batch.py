"""Batches: examples as token ids, padded into tensors, and where in the model's output their labels are predicted.

    causal          input = prompt + answer[:-1]; the answer (with its end token) is predicted
    seq2seq         encoder input = prompt; decoder input = start + answer[:-1]; the answer is predicted
    classification  input = text; the class is predicted

The grid of a batch is its (rows, tokens) of ids. Flat indices count through it row by row.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorax.errors import UserError
from lorax.models.modality import Batch, by_lane

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorax.tasks.base import Example


@dataclass(frozen=True)
class Encoded:
    """One example in token ids."""

    ids: list[int]
    """The prompt (causal), the encoder's input (seq2seq) or the text (classification)."""
    labels: list[int]
    """What is predicted: the answer's tokens and the end token, or the one class."""
    example: Example

    def __len__(self) -> int:
        return len(self.ids) + len(self.labels)


def order(seed: int, n: int, batch_size: int, steps: int) -> list[list[int]]:
    """Return the indices of every batch: permutations of the data, one after another, cut into batches.

    Only the seed and the sizes decide it, so that all methods see the same data in the same order.
    Batches are always full: one that reaches the end of an epoch goes on in the next.

    Args:
        seed: the run's seed.
        n: number of training examples.
        batch_size: examples per step.
        steps: optimiser steps.

    Returns:
        `steps` lists of `batch_size` indices below `n`.

    Raises:
        UserError: there is no training example.

    Examples:
        >>> sorted(sum(order(0, 6, 2, 3), []))
        [0, 1, 2, 3, 4, 5]
    """
    if n < 1:
        raise UserError("the training split is empty: nothing to train on")
    # Seeded by a text, the generator is hashed over all of it: neighbouring seeds share nothing.
    generator = random.Random(f"order {seed}")
    stream: list[int] = []
    while len(stream) < batch_size * steps:
        stream += generator.sample(range(n), n)
    return [stream[start : start + batch_size] for start in range(0, batch_size * steps, batch_size)]


def pad_causal(rows: Sequence[Encoded], pad: int, prefix: int = 0, lanes: int = 1) -> Batch:
    """Return a row for each example, its answer behind its prompt, padded on the right to the longest.

    There is no attention mask: padding comes after every real token, where causal attention cannot see
    it. Padding is known by position, so a pad token that is also the end token is learnt like any other.

    Args:
        rows: the examples; those of a lane next to each other, equally many each.
        pad: the token to pad with.
        prefix: leading tokens that go into `Batch.prefix`, once for each lane, and not into the rows.
        lanes: K.
    """
    tokens = [row.ids[prefix:] + row.labels[:-1] for row in rows]
    ids, lengths, counts = grid(tokens, pad), torch.tensor([*map(len, tokens)]), [len(row.labels) for row in rows]
    first = [len(row.ids) - prefix - 1 for row in rows]
    return Batch(
        inputs={"input_ids": ids},
        positions=label_positions(first, counts, ids.shape[1]),
        targets=flat_labels(rows),
        counts=counts,
        prefix=torch.tensor([rows[0].ids[:prefix]] * lanes) if prefix else None,
        unpadded=unpadded_tokens(lengths, ids.shape[1]),
        widths=lane_widths([[len(row) - 1 for row in rows]], lanes),
    )


def shared_prefix(rows: Sequence[Encoded], lanes: int, device: torch.device) -> int:
    """Return how many leading tokens all rows have in common, if it pays to compute them once for each lane; else 0.

    The prompts of a task begin alike (template, system text, instruction, shots). What a causal model
    makes of a beginning does not depend on what follows, so its keys and values serve all rows, and
    the rows' gradients add up in them. A beginning costs a second, short forward pass, so it pays only
    where tokens are what takes the time: a fifth of them on a CPU, thousands on a GPU.

    Args:
        rows: examples of a causal model.
        lanes: K; the beginning is computed once for each.
        device: where the model is.
    """
    common = len(os.path.commonprefix([row.ids[:-1] for row in rows]))
    saved = common * (len(rows) - lanes)
    total = len(rows) * max(map(len, rows))
    return common if saved >= max(0.2 * total, 32 if device.type == "cpu" else 8192) else 0


def lane_widths(lengths: Sequence[Sequence[int]], lanes: int) -> list[dict[int, int]]:
    """Return, for each lane, {width of a grid of this batch: its width if the lane were alone}.

    Args:
        lengths: for each grid (one, or the encoder's and the decoder's), the tokens of every row.
        lanes: K.
    """
    widths: list[dict[int, int]] = [{} for _ in range(lanes)]
    for rows in lengths:
        for lane, block in enumerate(by_lane(rows, lanes)):
            widths[lane][max(rows)] = max(block)
    return widths


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token to pad with; any would do, since padding is known by its position."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in candidates if token is not None))


def grid(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Return token ids (rows, longest), padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.long)


def flat_labels(rows: Sequence[Encoded]) -> Tensor:
    """Return the labels of all rows in order, (N,)."""
    return torch.tensor([label for row in rows for label in row.labels], dtype=torch.long)


def unpadded_tokens(lengths: Tensor, width: int) -> Tensor | None:
    """Return the flat indices of the tokens of right-padded rows; None if less than an eighth is padding.

    Args:
        lengths: (rows,) tokens of each row.
        width: tokens of a padded row.
    """
    if int(lengths.sum()) > 0.875 * width * len(lengths):
        return None
    return (torch.arange(width) < lengths[:, None]).flatten().nonzero().squeeze(1)


def label_positions(first: Sequence[int], counts: Sequence[int], width: int) -> Tensor:
    """Return the flat indices, (N,), where labels are predicted: `counts[i]` columns of row i from `first[i]` on."""
    flat = [
        row * width + column
        for row, (start, count) in enumerate(zip(first, counts, strict=True))
        for column in range(start, start + count)
    ]
    return torch.tensor(flat, dtype=torch.long)
