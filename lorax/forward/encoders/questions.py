"""Questions whose answer is a span of a text: where it starts, and where it ends. Long texts are read in windows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lorax.errors import UserError
from lorax.forward.batch import batch_of, pad_id
from lorax.forward.classification import masked
from lorax.forward.text import limit, token_losses
from lorax.models.modality import Batch, Modality, Prediction, by_lane, row_means

if TYPE_CHECKING:
    from lorax.models.modality import ActiveLanes
    from lorax.tasks.base import Example
    from lorax.tasks.labelled.squad import QuestionTask


@dataclass(frozen=True)
class Window:
    """A stretch of the text behind the question."""

    ids: list[int]
    types: list[int]
    """Of each token 1 in the text and 0 before; [] if the model makes no difference."""
    first: int
    """Of the text's tokens in `ids`."""
    offsets: list[tuple[int, int]]
    """First character, and the one after the last, of each token of the text."""


@dataclass(frozen=True)
class Questioned:
    """One question: two labels for each window, start and end; 0, the first token, where the answer is not in it."""

    windows: list[Window]
    labels: list[int]
    example: Example

    def __len__(self) -> int:
        return len(self.windows) * max(len(window.ids) for window in self.windows)


class QuestionedText(Modality[Questioned]):
    """Question and text as a pair; the loss is the cross-entropy of the start and of the end over a window's tokens."""

    task_kinds = ("question_answering",)
    loss_name = "cross-entropy over the tokens of a window"

    def encode(self, task: QuestionTask, split: str, shots: bool = False) -> list[Questioned]:
        """Encode one split of a task, and say how many texts take several windows, and of answers that fit into none.

        Raises:
            UserError: the tokenizer does not say which characters a token stands for; a question without room for text.
        """
        if not self.loaded.tokenizer.is_fast:
            raise UserError(f"model={self.loaded.name}: a slow tokenizer, which does not say where its tokens are")
        rows = [self._row(task, split, example) for example in task.examples(split)]
        several = sum(len(row.windows) > 1 for row in rows)
        lost = sum(bool(row.example.answer) and not any(row.labels) for row in rows)
        if several:
            line = f"{task.name} {split}: {several:,} of {len(rows):,} texts are read in several windows"
            more = f"; {lost:,} answers lie in none of them whole" if lost else ""
            warnings.warn(line + more, stacklevel=2)
        return rows

    def _row(self, task: QuestionTask, split: str, example: Example) -> Questioned:
        tokenizer, bound = self.loaded.tokenizer, limit(self.loaded)
        most = min(task.window, bound or task.window)
        question, text = example.meta["question"], example.meta["context"]
        taken = len(tokenizer(question, text[:0])["input_ids"])
        if taken + task.stride >= most:
            raise UserError(
                f"{task.name} {split}: the question of example {example.id} has {taken} tokens: with task.stride="
                f"{task.stride} no room is left for the text in a window of {most}"
            )
        encoded = tokenizer(
            question, text, truncation="only_second", max_length=most, stride=task.stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        windows: list[Window] = []
        labels: list[int] = []
        types = encoded.get("token_type_ids") or [[]] * len(encoded["input_ids"])
        for number, ids in enumerate(encoded["input_ids"]):
            inside = [at for at, part in enumerate(encoded.sequence_ids(number)) if part == 1]
            offsets = [tuple(encoded["offset_mapping"][number][at]) for at in inside]
            kinds = types[number] if 1 in types[number] else []
            window = Window(list(ids), list(kinds), inside[0] if inside else 0, offsets)
            windows.append(window)
            labels += _places(window, example)
        return Questioned(windows, labels, example)

    def collate(
        self, rows: Sequence[Questioned], lanes: int = 1, *, share: bool = True, single_pass: bool = False
    ) -> Batch:
        """Return a padded row for each window; lanes with fewer windows are filled up with rows without labels."""
        blocks = [[window for row in block for window in row.windows] for block in by_lane(rows, lanes)]
        most = max(map(len, blocks))
        positions = [2 * (lane * most + at) + end
                     for lane, block in enumerate(blocks) for at in range(len(block)) for end in (0, 1)]  # fmt: skip
        windows = [window for block in blocks for window in [*block, *[block[-1]] * (most - len(block))]]
        parts = masked([window.ids for window in windows], pad_id(self.loaded.tokenizer))
        if any(window.types for window in windows):
            types = np.zeros_like(parts["input_ids"])
            for window, line in zip(windows, types, strict=True):
                line[: len(window.types)] = window.types
            parts["token_type_ids"] = types
        parts["targets"] = np.array([label for row in rows for label in row.labels])
        parts["positions"] = np.array(positions)
        return batch_of(parts, [len(row.labels) for row in rows], self.device)

    def forward(self, batch: Batch) -> Tensor:
        """Return (N, T): for each label a logit at every token of its window, the lowest number at padding."""
        assert batch.positions is not None
        output = self.loaded.model(**batch.inputs)
        logits = torch.stack([output.start_logits, output.end_logits], dim=1)
        padding = batch.inputs["attention_mask"][:, None] == 0
        logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min / 2)
        return logits.flatten(0, 1).index_select(0, batch.positions)

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of each label, (N,)."""
        return token_losses(output, batch.targets)

    def predict(
        self, task: QuestionTask, rows: Sequence[Questioned], lanes: int, active: ActiveLanes
    ) -> list[list[Prediction]]:
        """Return, for each lane, the best span of each row's windows as text, or "" where none is better."""
        batch = self.collate([*rows] * lanes, lanes)
        with active(range(lanes)):
            output = self.forward(batch)
        losses = row_means(self.losses(output, batch), batch.counts)
        parts = output.float().cpu().split(batch.counts)
        answers = [
            Prediction(best_span(part, row, task.longest, task.null), loss)
            for part, row, loss in zip(parts, [*rows] * lanes, losses, strict=True)
        ]
        return by_lane(answers, lanes)

    def fits(self, task: QuestionTask, rows: Sequence[Questioned], lanes: int) -> int:
        """Return how many of these rows, the largest first, may be predicted at once, by their tokens."""
        tokens = 2**17 if self.device.type == "cuda" else 2**13
        return max(1, tokens // (len(rows[0]) * lanes))


def _places(window: Window, example: Example) -> Iterator[int]:
    """Return the tokens where the answer starts and ends in a window; 0 and 0 where it is not whole in it."""
    start = example.meta["start"]
    end = start + len(example.answer)
    if not example.answer or not window.offsets or window.offsets[0][0] > start or window.offsets[-1][1] < end:
        return iter((0, 0))
    starts = [at for at, (first, _) in enumerate(window.offsets) if first <= start]
    ends = [at for at, (_, last) in enumerate(window.offsets) if last >= end]
    return iter((window.first + starts[-1], window.first + ends[0]))


def best_span(logits: Tensor, row: Questioned, longest: int, null: bool) -> str:
    """Return the text of the span with the largest sum of its start's and its end's logit, over all windows.

    Args:
        logits: (2 W, T): start and end of each of W windows.
        row: the question.
        longest: tokens of an answer at most.
        null: "" is an answer: it wins where the first token's sum, the least over the windows, is larger.
    """
    best, answer, nothing = -float("inf"), "", float("inf")
    for window, (starts, ends) in zip(row.windows, logits.split(2), strict=True):
        nothing = min(nothing, float(starts[0] + ends[0]))
        n = len(window.offsets)
        if not n:
            continue
        inside = slice(window.first, window.first + n)
        sums = starts[inside, None] + ends[None, inside]
        allowed = torch.ones(n, n, dtype=torch.bool).triu().tril(longest - 1)
        sums = sums.masked_fill(~allowed, -float("inf"))
        place = int(sums.argmax())
        if float(sums.flatten()[place]) > best:
            best = float(sums.flatten()[place])
            answer = row.example.meta["context"][window.offsets[place // n][0] : window.offsets[place % n][1]]
    return "" if null and nothing > best else answer
