"""Batches: which examples, padded how, and where their labels are predicted.

causal          input = prompt + answer[:-1]; the answer (with its end token) is predicted
seq2seq         encoder input = prompt; decoder input = start + answer[:-1]; the answer is predicted
classification  input = text; the class is predicted
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorax.errors import UserError

if TYPE_CHECKING:
    from lorax.models.registry import Loaded
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


@dataclass
class Batch:
    """Right-padded tensors; `positions` says where in the flattened output the labels are predicted."""

    inputs: dict[str, Tensor]
    """What the model's forward takes."""
    positions: Tensor
    """(N,) indices into the (rows * tokens) grid of outputs; rows themselves for classification."""
    targets: Tensor
    """(N,) the token or class to be predicted at each position."""
    counts: list[int]
    """Labels in each row; sums to N."""
    prefix: Tensor | None = None
    """(lanes, p) tokens before those in `inputs`, the same for all rows of a lane; see `shared_prefix`."""

    live: Tensor | None = None
    """Flat indices, into the (rows * tokens) grid of inputs, of the tokens that are no padding; None where padding
    is too little to be worth leaving out, or where there are two grids (seq2seq)."""

    @property
    def width(self) -> int:
        """Tokens in a padded row, the prefix included."""
        return self.inputs["input_ids"].shape[1] + (0 if self.prefix is None else self.prefix.shape[1])

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        move = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        prefix = None if self.prefix is None else self.prefix.to(device)
        live = None if self.live is None else self.live.to(device)
        return Batch(move, self.positions.to(device), self.targets.to(device), self.counts, prefix, live)


def order(seed: int, n: int, batch_size: int, steps: int) -> list[list[int]]:
    """Return the indices of every batch: permutations of the data, one after another, cut to size.

    Only `seed` (and the sizes) move it, so that all methods see the same data in the same order.
    Batches are always full: one that reaches the end of an epoch goes on in the next.

    Args:
        seed: the run's seed.
        n: number of training examples.
        batch_size: examples a step.
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


def collate(rows: Sequence[Encoded], loaded: Loaded, prefix: int = 0, lanes: int = 1) -> Batch:
    """Pad rows to a common length on the right and say where their labels are predicted.

    A causal model gets no attention mask: padding comes after every real token, where causal
    attention cannot see it. Padding is known by position, so a pad token that is also the end
    token is learnt like any other.

    Args:
        rows: the examples; those of a lane next to each other.
        loaded: kind of model, tokenizer.
        prefix: leading tokens to be computed once a lane instead of once a row (`shared_prefix`).
        lanes: K.
    """
    pad = pad_id(loaded.tokenizer)
    counts = [len(row.labels) for row in rows]
    targets = torch.tensor([label for row in rows for label in row.labels], dtype=torch.long)
    if loaded.kind == "causal":
        grid = _grid([row.ids[prefix:] + row.labels[:-1] for row in rows], pad)
        first = [len(row.ids) - prefix - 1 for row in rows]
        shared = torch.tensor([rows[0].ids[:prefix]] * lanes) if prefix else None
        live = live_tokens(torch.tensor([len(row.ids) - prefix + len(row.labels) - 1 for row in rows]), grid.shape[1])
        return Batch({"input_ids": grid}, _positions(first, counts, grid.shape[1]), targets, counts, shared, live)
    grid = _grid([row.ids for row in rows], pad)
    lengths = torch.tensor([len(row.ids) for row in rows])
    inputs = {"input_ids": grid, "attention_mask": (torch.arange(grid.shape[1]) < lengths[:, None]).long()}
    if loaded.kind == "classification":
        live = live_tokens(lengths, grid.shape[1])
        return Batch(inputs, torch.arange(len(rows)), targets, counts, live=live)
    start = loaded.model.config.decoder_start_token_id
    inputs["decoder_input_ids"] = _grid([[start, *row.labels[:-1]] for row in rows], pad)
    width = inputs["decoder_input_ids"].shape[1]
    return Batch(inputs, _positions([0] * len(rows), counts, width), targets, counts)


def shared_prefix(rows: Sequence[Encoded], lanes: int, device: torch.device) -> int:
    """Return how many leading tokens all rows have in common, if computing them once a lane pays.

    Prompts of a task begin alike (the template, the system text, the instruction, the shots), and
    what a causal model makes of a beginning does not depend on the rest: its keys and values serve
    all rows, and gradients add up in them. It costs a second, short forward pass, so it pays where
    tokens are what takes the time: a fifth of them on a CPU, thousands on a GPU.

    Args:
        rows: examples of a causal model.
        lanes: K; the prefix is computed for each.
        device: where the model is.
    """
    common = len(os.path.commonprefix([row.ids[:-1] for row in rows]))
    saved = common * (len(rows) - lanes)
    whole = len(rows) * max(map(len, rows))
    return common if saved >= max(0.2 * whole, 32 if device.type == "cpu" else 8192) else 0


def widths(blocks: Sequence[Sequence[Encoded]], kind: str) -> list[dict[int, int]]:
    """Return, for each block of rows of one batch, {padded tokens: tokens if the block were alone}."""
    own = [_sizes(block, kind) for block in blocks]
    whole = [max(sizes) for sizes in zip(*own, strict=True)]
    return [dict(zip(whole, sizes, strict=True)) for sizes in own]


def _sizes(rows: Sequence[Encoded], kind: str) -> list[int]:
    """The padded widths of a batch: one, or the encoder's and the decoder's."""
    if kind == "causal":
        return [max(len(row.ids) + len(row.labels) for row in rows) - 1]
    prompts = max(len(row.ids) for row in rows)
    return [prompts, max(len(row.labels) for row in rows)] if kind == "seq2seq" else [prompts]


def pad_id(tokenizer: Any) -> int:
    """Return the id to pad with; any would do, since padding is known by its position."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
        if token is not None:
            return int(token)
    return 0


def _grid(rows: list[list[int]], pad: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.long)


def live_tokens(lengths: Tensor, width: int) -> Tensor | None:
    """Return where the tokens of right-padded rows are, flat, or None if less than an eighth is padding."""
    if int(lengths.sum()) > 0.875 * width * len(lengths):
        return None
    return (torch.arange(width) < lengths[:, None]).flatten().nonzero().squeeze(1)


def _positions(first: list[int], counts: list[int], width: int) -> Tensor:
    flat = [
        row * width + column
        for row, (start, count) in enumerate(zip(first, counts, strict=True))
        for column in range(start, start + count)
    ]
    return torch.tensor(flat, dtype=torch.long)
