"""Text that is classified: one label and one row of logits for each example."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lorax.forward.batch import Encoded, batch_of, grid, pad_id, unpadded_tokens
from lorax.forward.sizes import Size
from lorax.forward.text import TextModality, limit
from lorax.models.modality import Batch

if TYPE_CHECKING:
    import torch

    from lorax.forward.prompts import Pair, Turns
    from lorax.tasks.base import Example, Task


class ClassifiedText(TextModality):
    """The text goes in as it is, without template or shots; the most likely class is the answer."""

    task_kinds = ("classification",)

    @property
    def logits_per_label(self) -> int:
        """One: with few classes, tokens alone decide how many rows fit."""
        return 1

    def texts(self, example: Example) -> tuple[str, str]:
        """Return the text and the class's number."""
        return example.prompt, str(example.label)

    def tokenise(self, system: str | None, turns: Turns, texts: Sequence[tuple[str, str]]) -> Iterable[Pair]:
        """Return the ids of each text, cut to the model's context, and its one label."""
        bound = limit(self.loaded)
        encoded = self.loaded.tokenizer([text for text, _ in texts], truncation=bound is not None, max_length=bound)
        return [(list(ids), [int(label)]) for ids, (_, label) in zip(encoded["input_ids"], texts, strict=True)]

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
    targets = {"targets": np.array([row.labels[0] for row in rows]), "positions": np.arange(len(rows))}
    unpadded = unpadded_tokens(lengths, inputs["input_ids"].shape[1]) if size is None else {}
    return batch_of({**inputs, **targets, **unpadded}, [1] * len(rows), device, size)


def masked(rows: Sequence[Sequence[int]], pad: int, size: Size | None = None) -> dict[str, np.ndarray]:
    """Return right-padded ids (rows, longest) and their attention mask, 1 for tokens and 0 for padding."""
    ids, lengths = grid(rows, pad, size), np.array([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)}
