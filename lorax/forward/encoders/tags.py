"""Text whose words are tagged: a label on the first sub-token of each word, none elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lorax.errors import UserError
from lorax.forward.batch import Encoded, batch_of, pad_id, unpadded_tokens
from lorax.forward.classification import ClassifiedText, masked
from lorax.forward.encoders.cuts import say_cut
from lorax.forward.sizes import Size
from lorax.forward.text import limit
from lorax.forward.token_cache import cached

if TYPE_CHECKING:
    from lorax.forward.prompts import Pair
    from lorax.models.modality import Batch, Prediction
    from lorax.tasks.labelled.tagged import TagTask


@dataclass(frozen=True, kw_only=True)
class Tagged(Encoded):
    """One tagged text; `labels` are the numbers of the tags of those words that have a token."""

    places: list[int]
    """Where in `ids` each label is predicted: the word's first sub-token."""
    words: list[int]
    """Of each label the number of its word. Words that were cut off, or have no token, have none."""


class TaggedText(ClassifiedText):
    """The text goes in as it is; the most likely tag of each word is the answer, and `none` of a word without token."""

    task_kinds = ("token_classification",)

    def encode(self, task: TagTask, split: str, shots: bool = False) -> list[Tagged]:  # type: ignore[override]
        """Encode one split of a task.

        Raises:
            UserError: the tokenizer does not say which characters a token stands for; a text without tokens.
        """
        if not self.loaded.tokenizer.is_fast:
            raise UserError(f"model={self.loaded.name}: a slow tokenizer, which does not say where a word's tokens are")
        assert task.labels is not None
        number = {tag: index for index, tag in enumerate(task.labels)}
        examples, bound = task.examples(split), limit(self.loaded)
        texts = [[example.prompt, *example.meta["words"]] for example in examples]
        pairs = cached(self.loaded.tokenizer, ["first sub-tokens", bound, texts], lambda: self._placed(texts, bound))
        rows, short = [], 0
        for (ids, flat), example in zip(pairs, examples, strict=True):
            places, words = flat[: len(flat) // 2], flat[len(flat) // 2 :]
            if not words:
                raise UserError(f"{task.name} {split}: example {example.id}: the tokenizer makes nothing of its words")
            short += len(ids) == bound and len(words) < len(example.meta["words"])
            labels = [number[example.meta["tags"][word]] for word in words]
            rows.append(Tagged(ids, labels, example, places=places, words=words))
        say_cut(task.name, split, short, len(rows), bound)
        return rows

    def _placed(self, texts: Sequence[Sequence[str]], bound: int | None) -> list[Pair]:
        """Return, of each text, its ids; and the places of its words' first sub-tokens, with these words' numbers."""
        encoded = self.loaded.tokenizer(
            [text for text, *_ in texts], truncation=bound is not None, max_length=bound, return_offsets_mapping=True
        )
        return [
            (list(ids), first_tokens(offsets, words))
            for ids, offsets, (_, *words) in zip(encoded["input_ids"], encoded["offset_mapping"], texts, strict=True)
        ]

    def pad(self, rows: Sequence[Encoded], lanes: int = 1, size: Size | None = None) -> Batch:
        """Return a padded row for each text, with an attention mask and the places of its labels."""
        inputs, counts = masked([row.ids for row in rows], pad_id(self.loaded.tokenizer), size), []
        width, at = inputs["input_ids"].shape[1], 0
        targets = np.zeros(sum(len(row.labels) for row in rows) if size is None else size.labels, dtype=np.int64)
        positions = np.zeros_like(targets)
        for line, row in enumerate(rows):
            assert isinstance(row, Tagged)
            end = at + len(row.labels)
            targets[at:end], positions[at:end] = row.labels, [line * width + place for place in row.places]
            at = end
            counts.append(len(row.labels))
        unpadded = unpadded_tokens([len(row.ids) for row in rows], width) if size is None else {}
        return batch_of({**inputs, "targets": targets, "positions": positions, **unpadded}, counts, self.device, size)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits at the labels, (N, tags)."""
        assert batch.positions is not None
        return super().forward(batch).flatten(0, -2).index_select(0, batch.positions)

    def read(self, output: Tensor, task: Any) -> Any:
        """Return the numbers of the most likely tags.

        Args:
            output: (n, tags) logits at the n labels of a text.
            task: unused.
        """
        return output.argmax(-1).tolist()

    def score(self, task: Any, row: Encoded, prediction: Prediction) -> dict[str, Any]:
        """Return what the record keeps of a text: its spans as they should be, as they were found, right or not."""
        assert isinstance(row, Tagged)
        found = task.written(len(row.example.meta["words"]), dict(zip(row.words, prediction.value, strict=True)))
        scores = task.score(row.example, found)
        return {**scores, "loss": prediction.loss, "completion": found, "answer": row.example.gold}


def first_tokens(offsets: Sequence[Sequence[int]], words: Sequence[str]) -> list[int]:
    """Return the places of the words' first tokens, then the numbers of the words that have one.

    Args:
        offsets: first character, and the one after the last, of each token; alike for special tokens.
        words: the text is these words with one space between.

    Examples:
        >>> first_tokens([(0, 0), (0, 2), (2, 4), (5, 6), (0, 0)], ["play", "x"])
        [1, 3, 0, 1]
    """
    places, numbers, start, token = [], [], 0, 0
    for number, word in enumerate(words):
        end = start + len(word)
        while token < len(offsets) and (offsets[token][0] == offsets[token][1] or offsets[token][1] <= start):
            token += 1
        if token < len(offsets) and offsets[token][0] < end:
            places.append(token)
            numbers.append(number)
        start = end + 1
    return places + numbers
