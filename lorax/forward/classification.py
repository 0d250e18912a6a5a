"""Text that is classified: one label and one row of logits for each example."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lorax.forward.batch import Encoded, batch_of, grid, pad_id, unpadded_tokens
from lorax.forward.encoders.cuts import say_cut
from lorax.forward.sizes import Size
from lorax.forward.text import TextModality, limit
from lorax.models.modality import Batch

if TYPE_CHECKING:
    import torch

    from lorax.forward.prompts import Pair, Turns
    from lorax.models.modality import Prediction
    from lorax.tasks.base import Example, Task


class ClassifiedText(TextModality):
    """The text goes in as it is, without template or shots; the most likely class is the answer."""

    task_kinds = ("classification",)

    @property
    def logits_per_label(self) -> int:
        """One: with few classes, tokens alone decide how many rows fit."""
        return 1

    def texts(self, example: Example) -> tuple[Any, str]:
        """Return the text, or the list of two texts, and the class's number."""
        return self.input_of(example), str(example.label)

    def input_of(self, example: Example) -> Any:
        """Return the text; or a list of both, where the tokenizer keeps two texts apart."""
        return list(example.pair) if example.pair is not None and self._keeps_pairs else example.prompt

    def label_of(self, written: str) -> int:
        """Return what `texts` wrote of a label as a whole number."""
        return int(written)

    @cached_property
    def _keeps_pairs(self) -> bool:
        """Whether the tokenizer puts something between two texts; else they go in as one, a line each."""
        count = self.loaded.tokenizer.num_special_tokens_to_add
        return count(pair=True) > count(pair=False)

    def encode(self, task: Task, split: str, shots: bool = False) -> list[Encoded]:
        """Encode one split of a task; texts that are longer than the model takes are cut, which is said."""
        rows, bound = super().encode(task, split, shots), limit(self.loaded)
        full = [row for row in rows if len(row.ids) == bound]
        whole = self.loaded.tokenizer(*_columns([self.input_of(row.example) for row in full])) if full else {}
        longer = sum(len(ids) > len(row.ids) for ids, row in zip(whole.get("input_ids", ()), full, strict=True))
        say_cut(task.name, split, longer, len(rows), bound)
        return [
            replace(row, labels=row.labels[:1], second=row.labels[1]) if len(row.labels) > 1 else row for row in rows
        ]

    def tokenise(self, system: str | None, turns: Turns, texts: Sequence[tuple[Any, str]]) -> Iterable[Pair]:
        """Return the ids of each text, cut to the model's context, and its one label.

        Of two texts the longer is cut; a second label says where the second begins.
        """
        bound, pairs = limit(self.loaded), []
        columns = _columns([text for text, _ in texts])
        encoded = self.loaded.tokenizer(*columns, truncation=bound is not None, max_length=bound)
        types = encoded.get("token_type_ids") or [()] * len(texts)
        for ids, kinds, (text, label) in zip(encoded["input_ids"], types, texts, strict=True):
            second = [kinds.index(1) if 1 in kinds else 0] if not isinstance(text, str) else []
            pairs.append((list(ids), [self.label_of(label), *second]))
        return pairs

    def collate(
        self, rows: Sequence[Encoded], lanes: int = 1, *, share: bool = True, single_pass: bool = False
    ) -> Batch:
        """Return a padded row for each text, with an attention mask; every row is computed whole."""
        return self.pad(rows)

    def pad(self, rows: Sequence[Encoded], lanes: int = 1, size: Size | None = None) -> Batch:
        """Return a padded row for each text, with an attention mask."""
        return pad_classification(rows, pad_id(self.loaded.tokenizer), self.device, size)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits, (rows, classes)."""
        return self.loaded.model(**self._options, **batch.inputs).logits

    @cached_property
    def _options(self) -> dict[str, bool]:
        takes_cache = "use_cache" in inspect.signature(self.loaded.model.forward).parameters
        return {"use_cache": False} if takes_cache else {}

    def read(self, output: Tensor, task: Task) -> str:
        """Return the name of the most likely class.

        Args:
            output: (1, classes) logits.
            task: names the classes.
        """
        assert task.labels is not None
        return task.labels[int(output.argmax(-1))]

    def score(self, task: Task, row: Encoded, prediction: Prediction) -> dict[str, Any]:
        """Return what the record keeps of an answer, with the part of the test set that it is from, if it has parts."""
        part = row.example.meta.get("part")
        return super().score(task, row, prediction) | ({} if part is None else {"part": part})


def pad_classification(
    rows: Sequence[Encoded], pad: int, device: torch.device | str = "cpu", size: Size | None = None
) -> Batch:
    """Return a row for each text, padded on the right to the longest, with an attention mask.

    Args:
        rows: the examples; those of a lane next to each other, equally many each.
        pad: the token to pad with.
        device: where the batch goes.
        size: the shape to fill; None: as large as the rows need.
    """
    lengths, inputs = [len(row.ids) for row in rows], masked([row.ids for row in rows], pad, size)
    if any(row.second for row in rows):
        inputs["token_type_ids"] = _types(rows, inputs["input_ids"].shape[1])
    targets = {"targets": np.array([row.labels[0] for row in rows]), "positions": np.arange(len(rows))}
    unpadded = unpadded_tokens(lengths, inputs["input_ids"].shape[1]) if size is None else {}
    return batch_of({**inputs, **targets, **unpadded}, [1] * len(rows), device, size)


def _types(rows: Sequence[Encoded], width: int) -> np.ndarray:
    """Return (rows, width): 1 for the tokens of the second text, 0 for the rest and for padding."""
    column, types = np.arange(width), np.zeros((len(rows), width), dtype=np.int64)
    for row, line in zip(rows, types, strict=True):
        line[(column >= row.second) & (column < len(row.ids))] = bool(row.second)
    return types


def _columns(texts: Sequence[Any]) -> tuple[list[str], ...]:
    """Return the texts, or the first and the second texts of pairs, as a tokenizer takes them."""
    if texts and not isinstance(texts[0], str):
        return [first for first, _ in texts], [second for _, second in texts]
    return (list(texts),)


def masked(rows: Sequence[Sequence[int]], pad: int, size: Size | None = None) -> dict[str, np.ndarray]:
    """Return right-padded ids (rows, longest) and their attention mask, 1 for tokens and 0 for padding."""
    ids, lengths = grid(rows, pad, size), np.array([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)}
