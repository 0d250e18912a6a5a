"""Batches: examples as token ids, padded into tensors, and where in the model's output their labels are predicted.

    causal          input = prompt + answer[:-1]; the answer (with its end token) is predicted
    seq2seq         encoder input = prompt; decoder input = start + answer[:-1]; the answer is predicted
    classification  input = text, or two; the class is predicted

The grid of a batch is its (rows, tokens) of ids. Flat indices count through it row by row.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from lorax.errors import UserError
from lorax.forward.sizes import Size
from lorax.models.modality import Batch

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
    given: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Tokens between labels that are read and not predicted: how many labels come before, and the tokens."""
    choices: tuple[list[int], ...] = ()
    """The labels of each answer to choose from."""
    second: int = field(default=0, kw_only=True)
    """Of two texts, where the second begins, if the model has another embedding for its tokens; else 0."""

    def __len__(self) -> int:
        return len(self.ids) + len(self.labels) + sum(len(tokens) for _, tokens in self.given)

    @property
    def continuation(self) -> list[int]:
        """The tokens after `ids` that the model reads: all but the last label."""
        if not self.given:
            return self.labels[:-1]
        tokens, start = [], 0
        for count, between in self.given:
            tokens += [*self.labels[start:count], *between]
            start = count
        return tokens + self.labels[start:-1]

    @property
    def shifts(self) -> np.ndarray:
        """How many given tokens come before each label, (labels,)."""
        shifts = np.zeros(len(self.labels), dtype=np.int64)
        for count, between in self.given:
            shifts[count:] += len(between)
        return shifts

    def last(self) -> Encoded:
        """Return the row whose labels are those after the last given tokens, and all before is its prompt."""
        if not self.given:
            return self
        count = self.given[-1][0]
        whole = [*self.ids, *self.continuation]
        return replace(self, ids=whole[: len(self) - len(self.labels) + count], labels=self.labels[count:], given=())


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


def pad_causal(
    rows: Sequence[Encoded],
    pad: int,
    prefix: int = 0,
    lanes: int = 1,
    device: torch.device | str = "cpu",
    size: Size | None = None,
) -> Batch:
    """Return a row for each example, its answer behind its prompt, padded on the right to the longest.

    There is no attention mask: padding comes after every real token, where causal attention cannot see
    it. Padding is known by position, so a pad token that is also the end token is learnt like any other.

    Args:
        rows: the examples; those of a lane next to each other, equally many each.
        pad: the token to pad with.
        prefix: leading tokens that go into `Batch.prefix`, once for each lane, and not into the rows.
        lanes: K.
        device: where the batch goes.
        size: the shape to fill; None: as large as the rows need.
    """
    tokens = [row.ids[prefix:] + row.continuation for row in rows]
    ids, lengths, counts = grid(tokens, pad, size), [*map(len, tokens)], [len(row.labels) for row in rows]
    first = [len(row.ids) - prefix - 1 for row in rows]
    parts = {"input_ids": ids, **labels_at(rows, first, ids.shape[1], size)}
    if prefix:
        parts["prefix"] = np.array([rows[0].ids[:prefix]] * lanes)
    parts |= unpadded_tokens(lengths, ids.shape[1]) if size is None else {}
    return batch_of(parts, counts, device, size)


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


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token to pad with; any would do, since padding is known by its position."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in candidates if token is not None))


def batch_of(
    parts: Mapping[str, np.ndarray], counts: list[int], device: torch.device | str, size: Size | None = None
) -> Batch:
    """Return a batch of integers that goes to the device in one copy: its tensors are views of one.

    Args:
        parts: `targets`, where there are any `positions`, `prefix` and `unpadded`, and what the model's forward takes.
        counts: labels of each row.
        device: where the batch goes.
        size: the shape that was filled.
    """
    host = torch.from_numpy(np.concatenate([part.ravel() for part in parts.values()]))
    if torch.device(device).type == "cuda":
        host = host.pin_memory()  # else the copy waits for what the device does
    packed = host.to(device, non_blocking=True)
    pieces = packed.split([part.size for part in parts.values()])
    tensors = {name: piece.view(part.shape) for (name, part), piece in zip(parts.items(), pieces, strict=True)}
    named = {name: tensors.pop(name, None) for name in ("positions", "prefix", "unpadded")}
    room = None if size is None else size.room
    return Batch(targets=tensors.pop("targets"), inputs=tensors, counts=counts, room=room, packed=packed, **named)


def grid(rows: Sequence[Sequence[int]], pad: int, size: Size | None = None) -> np.ndarray:
    """Return token ids (rows, longest), padded on the right."""
    ids = np.full((len(rows), max(map(len, rows)) if size is None else size.tokens), pad, dtype=np.int64)
    for row, line in zip(rows, ids, strict=True):
        line[: len(row)] = row
    return ids


def labels_at(
    rows: Sequence[Encoded], first: Sequence[int], width: int, size: Size | None = None
) -> dict[str, np.ndarray]:
    """Return the labels of all rows in order, and the flat indices, both (N,), where they are predicted.

    Args:
        rows: the examples.
        first: of each row, the column where its first label is predicted; the others follow, after what is given.
        width: columns of the grid.
        size: N is `size.labels`; what is beyond the rows' own labels is predicted nowhere in particular.
    """
    counts = np.array([len(row.labels) for row in rows])
    targets = np.zeros(counts.sum() if size is None else size.labels, dtype=np.int64)
    positions = np.zeros_like(targets)
    starts = np.arange(len(rows)) * width + np.array(first) - (counts.cumsum() - counts)
    positions[: counts.sum()] = np.repeat(starts, counts) + np.arange(counts.sum())
    if any(row.given for row in rows):
        positions[: counts.sum()] += np.concatenate([row.shifts for row in rows])
    targets[: counts.sum()] = [label for row in rows for label in row.labels]
    return {"positions": positions, "targets": targets}


def unpadded_tokens(lengths: Sequence[int], width: int) -> dict[str, np.ndarray]:
    """Return the flat indices of the tokens of right-padded rows, as `unpadded`; nothing if under an eighth is padding.

    Args:
        lengths: tokens of each row.
        width: tokens of a padded row.
    """
    if sum(lengths) > 0.875 * width * len(lengths):
        return {}
    return {"unpadded": (np.arange(width) < np.array(lengths)[:, None]).ravel().nonzero()[0]}
