"""What all text modalities share: encoding with a cache on disk, the cross-entropy, batches by length."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

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
        turns = [(shot.prompt, shot.answer) for shot in task.shots] if shots else []
        texts, bound = [self.texts(example) for example in examples], limit(self.loaded)
        content = [self.loaded.kind, task.system, turns, bound, texts]
        pairs = cached(self.loaded.tokenizer, content, lambda: list(self.tokenise(task.system, turns, texts)))
        for (ids, labels), example in zip(pairs, examples, strict=True):
            length = self.length(ids, labels)
            if bound is not None and length > bound:
                raise UserError(
                    f"{task.name} {split}: example {example.id} has {length} tokens, the model takes {bound}"
                )
        return [Encoded(ids, labels, example) for (ids, labels), example in zip(pairs, examples, strict=True)]

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

    def length(self, ids: list[int], labels: list[int]) -> int:
        """Return how many tokens of the model's context an example takes."""
        return len(ids)

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of each label, (N,), from logits (N, V)."""
        return token_losses(output, batch.targets)

    def fits(self, task: Task, rows: Sequence[Encoded], lanes: int) -> int:
        """Return how many of these rows fit into a budget of memory, the longest first.

        The budget of a GPU is 2^17 tokens and 2^31 logits at once, that of a CPU 2^13 and 2^27.
        """
        tokens, logits = (2**17, 2**31) if self.device.type == "cuda" else (2**13, 2**27)
        width = max(len(rows[0]), len(rows[0].ids) + (task.max_new_tokens or 0))
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


def limit(loaded: Loaded) -> int | None:
    """Return how many tokens the model takes, or None if neither model nor tokenizer says."""
    declared: list[Any] = [
        getattr(loaded.model.config, "max_position_embeddings", None),
        getattr(loaded.tokenizer, "model_max_length", None),
    ]
    return min((int(bound) for bound in declared if bound is not None and 0 < bound < 10**9), default=None)
