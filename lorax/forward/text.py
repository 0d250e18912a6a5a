"""What all text modalities share: encoding with a cache on disk, the cross-entropy, batches by length."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lorax.errors import UserError
from lorax.forward.batch import Encoded
from lorax.forward.logits.chunked_loss import token_losses
from lorax.forward.sizes import Size, few_sizes, size_for
from lorax.forward.token_cache import cached
from lorax.models.modality import Modality, by_lane

if TYPE_CHECKING:
    from lorax.forward.prompts import Pair, Turns
    from lorax.models.modality import Batch
    from lorax.models.registry import Loaded
    from lorax.tasks.base import Example, Task

JOINED = 512
"""Tokens of a joined batch at most."""


class TextModality(Modality[Encoded]):
    """Token ids in, tokens or a class out; the loss of a label is its cross-entropy."""

    loss_name = "cross-entropy"

    def encode(self, task: Task, split: str, shots: bool = False) -> list[Encoded]:
        """Encode one split of a task.

        Prompts go through the tokenizer's chat template where it has one (system text, then the shots
        if asked for, then the prompt), else they are plain text. Encoded splits are kept on disk
        (`token_cache`).

        Raises:
            UserError: an example does not fit into the model's context; names it, its length and the bound.
        """
        examples: Sequence[Example] = getattr(task, split)
        turns = [turn for shot in task.shots for turn in (*shot.history, (shot.prompt, shot.answer))] if shots else []
        rows, bound = self.rows(task.system, turns, examples), limit(self.loaded)
        if split in ("train", "heldout") and task.max_length is not None:
            rows, said = cut_to(rows, task.max_length)
            self.remarks += [f"{task.name} {split}: {said}"] if said else []
            if not rows:
                raise UserError(f"task.max_length={task.max_length}: no {split} example of {task.name} fits")
        cut = self.cut(task, split, [(row.ids, row.labels) for row in rows], bound)
        rows = [replace(row, ids=ids, labels=labels) for row, (ids, labels) in zip(rows, cut, strict=True)]
        for row in rows:
            if bound is not None and (length := self.length(row)) > bound:
                way = " (task.max_length cuts it)" if split in ("train", "heldout") else ""
                raise UserError(
                    f"{task.name} {split}: example {row.example.id} has {length} tokens, the model takes {bound}{way}"
                )
        return rows

    def rows(self, system: str | None, turns: Turns, examples: Sequence[Example]) -> list[Encoded]:
        """Encode examples, each after the worked ones and after what comes before it in its conversation."""
        pairs = self.pairs(system, turns, examples, [self.texts(example) for example in examples])
        return [Encoded(ids, labels, example) for (ids, labels), example in zip(pairs, examples, strict=True)]

    def pairs(
        self, system: str | None, turns: Turns, examples: Sequence[Example], texts: Sequence[tuple[str, str]]
    ) -> list[Pair]:
        """Return the ids of each input and its labels, from the cache where they are there.

        Args:
            system: the task's system text.
            turns: worked examples.
            examples: give what comes before each input in its conversation.
            texts: input and what is predicted, one for each example.
        """
        bound, tokenizer = limit(self.loaded), self.loaded.tokenizer
        content: list[Any] = [self.loaded.kind, system, turns, bound, texts]
        if not any(example.history or example.system for example in examples):
            return cached(tokenizer, content, lambda: list(self.tokenise(system, turns, texts)))
        contexts = [(example.system or system, [*turns, *example.history]) for example in examples]

        def build() -> list[Pair]:
            each = zip(contexts, texts, strict=True)
            return [pair for context, text in each for pair in self.tokenise(*context, [text])]

        return cached(tokenizer, [*content[:-1], contexts, texts], build)

    def shapes(self, batches: Sequence[Sequence[Encoded]], lanes: int) -> list[Size]:
        """Return few sizes that hold these batches."""
        return few_sizes([self.needed(rows, lanes) for rows in batches], limit(self.loaded))

    def fill(self, rows: Sequence[Encoded], lanes: int, shapes: list[Size]) -> Batch:
        """Pad rows, and their labels, to the smallest of the sizes that holds them; every row is computed whole."""
        return self.pad(rows, lanes, size_for(self.needed(rows, lanes), shapes, limit(self.loaded)))

    def needed(self, rows: Sequence[Encoded], lanes: int) -> Size:
        """Return the size of a batch of these rows."""
        labels = [sum(len(row.labels) for row in block) for block in by_lane(rows, lanes)]
        return Size(max(map(self.width, rows)), sum(labels), max(labels), max(len(row.labels) for row in rows))

    def width(self, row: Encoded) -> int:
        """Return the tokens of one row of the model's input."""
        return len(row.ids)

    @abstractmethod
    def pad(self, rows: Sequence[Encoded], lanes: int = 1, size: Size | None = None) -> Batch:
        """Return whole rows, padded on the right to the longest or to a size.

        Args:
            rows: the examples; those of a lane next to each other, equally many each.
            lanes: K.
            size: the shape to fill.
        """

    def texts(self, example: Example) -> tuple[str, str]:
        """Return the input of an example, and what is predicted, as text."""
        return example.prompt, example.answer

    @abstractmethod
    def tokenise(self, system: str | None, turns: Turns, texts: Sequence[tuple[str, str]]) -> Iterable[Pair]:
        """Return the ids of each input and its labels.

        Args:
            system: the task's system text.
            turns: worked examples to be put before each input.
            texts: what `texts` returned for each example.
        """

    def cut(self, task: Task, split: str, pairs: list[Pair], bound: int | None) -> list[Pair]:
        """Return the pairs, cut to `task.longest` where a model may see beginnings; default: as they are.

        Args:
            task: names itself in what is said.
            split: likewise.
            pairs: of `tokenise`.
            bound: tokens that the model takes, or None.
        """
        return pairs

    def length(self, row: Encoded) -> int:
        """Return how many tokens of the model's context an example takes."""
        return len(row.ids)

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of each label, (N,), from logits (N, V)."""
        return token_losses(output, batch.targets)

    def fits(self, task: Task, rows: Sequence[Encoded], lanes: int) -> int:
        """Return how many of these rows fit into a budget of memory, the longest first.

        The budget of a GPU is 2^17 tokens and 2^31 logits at once, that of a CPU 2^13 and 2^27.
        """
        tokens, logits = (2**17, 2**31) if self.device.type == "cuda" else (2**13, 2**27)
        width = max(len(rows[0]), len(rows[0].last().ids) + (task.max_new_tokens or 0))
        labels = max(len(row.labels) for row in rows)
        return max(1, min(tokens // (width * lanes), logits // (labels * lanes * self.logits_per_label)))

    def regroup(self, parts: list[list[Encoded]]) -> list[list[Encoded]]:
        """Join neighbouring batches while they take no more tokens than apart, and at most `JOINED`.

        In a product of a hundred tokens a token takes twice the time it takes among five hundred, and
        what prompts begin with is computed less often.
        """
        joined: list[list[Encoded]] = []
        for part in parts:
            together = [*joined[-1], *part] if joined else []
            if together and self.tokens(together) <= min(JOINED, self.tokens(joined[-1]) + self.tokens(part)):
                joined[-1] = together
            else:
                joined.append(part)
        return joined

    def tokens(self, rows: Sequence[Encoded]) -> int:
        """Return how many tokens, padding included, the model runs for rows of one lane in a single pass."""
        return len(rows) * max(map(len, rows))

    @property
    def logits_per_label(self) -> int:
        """How many logits the model gives for one label."""
        return getattr(self.loaded.model.config, "vocab_size", 1)


def cut_to(rows: Sequence[Encoded], most: int) -> tuple[list[Encoded], str]:
    """Return rows of at most so many tokens, cut on the right, and a sentence on those that were cut; "" if none was.

    A row without a label left is dropped: it would teach nothing.
    """
    short = [row if len(row) <= most else _cut(row, most) for row in rows]
    kept = [row for row in short if row.labels]
    n_cut = sum(len(row) > most for row in rows)
    said = f"{n_cut:,} of {len(rows):,} examples cut at {most:,} tokens" if n_cut else ""
    return kept, said + (
        f", {len(rows) - len(kept):,} of them dropped: no answer left" if len(kept) < len(rows) else ""
    )


def _cut(row: Encoded, most: int) -> Encoded:
    places = len(row.ids) + np.arange(len(row.labels)) + row.shifts
    n_labels = int((places < most).sum())
    given = tuple((count, tokens) for count, tokens in row.given if count < n_labels)
    return replace(row, labels=row.labels[:n_labels], given=given)


def limit(loaded: Loaded) -> int | None:
    """Return how many tokens the model takes, or None if neither model nor tokenizer says."""
    declared: list[Any] = [
        getattr(loaded.model.config, "max_position_embeddings", None),
        getattr(loaded.tokenizer, "model_max_length", None),
    ]
    return min((int(bound) for bound in declared if bound is not None and 0 < bound < 10**9), default=None)
