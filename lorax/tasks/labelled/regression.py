"""Texts, or pairs of them, with a number on a scale: `text_regression`, and what GLUE's STS-B is made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorax.errors import UserError
from lorax.tasks.base import Example, Task
from lorax.tasks.own_data import Asked, TextClassification, both_of, example_of, with_remarks
from lorax.tasks.readers import Row, Rows, text
from lorax.tasks.registry import register
from lorax.tasks.splitting import Sizes, split


@dataclass(frozen=True, kw_only=True)
class RegressionTask(Task):
    """Numbers to be given to texts. `Example.meta["standardised"]`: the number in spreads from the center."""

    center: float
    """Mean of the training numbers."""
    spread: float
    """Their standard deviation."""
    low: float
    """The least of them."""
    high: float
    """The largest."""

    def score(self, example: Example, completion: str | float) -> dict[str, Any]:
        """Return 1 - |error| / (high - low), 0 at least: 1 is exact, so that items can be compared as elsewhere."""
        return {"score": max(0.0, 1.0 - abs(float(completion) - float(example.answer)) / (self.high - self.low))}

    @property
    def majority(self) -> float | None:
        """The test score of always giving train's mean."""
        scores = [self.score(example, self.center)["score"] for example in self.test]
        return sum(scores) / len(scores) if scores else None


def number(row: Row, key: str) -> float:
    """Return a field as a number.

    Raises:
        UserError: it is none, or not finite; names the place.
    """
    words = text(row, key)
    try:
        found = float(words)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{row[0]}: field {key!r} is {words[:40]!r}, no number")
    return found


@register("text_regression")
@dataclass(frozen=True, kw_only=True)
class TextRegression(TextClassification):
    """Texts and numbers from the same sources as `text_classification`; the model gets a head of one output."""

    name: str = "text_regression"
    label: str = "score"
    """The field that holds the number."""

    def load(self, data_seed: int) -> Task:
        """Read and split the rows; UserError names file and line of one that cannot be used."""
        rows = self.rows(self.text, self.label, *([] if self.second is None else [self.second]))
        return regression(self, {part: [self._numbered(row) for row in some] for part, some in rows.items()},
                          data_seed, rows)  # fmt: skip

    def _numbered(self, row: Row) -> tuple[Asked, float]:
        if self.template is not None:
            return self.joined.fill(row), number(row, self.label)
        asked = text(row, self.text) if self.second is None else both_of(row, self.text, self.second)
        return asked, number(row, self.label)


def regression(
    options: TextClassification,
    pairs: Mapping[str, Sequence[tuple[Asked, float]]],
    data_seed: int,
    source: Mapping[str, Rows],
) -> RegressionTask:
    """Build a task from texts, or pairs of texts, and numbers.

    Args:
        options: sizes and training defaults.
        pairs: train, and where given validation and test.
        data_seed: decides the cut.
        source: the rows, for their remarks.

    Raises:
        UserError: all training numbers are the same.
    """
    official = {part: [example_of(words, repr(value)) for words, value in some] for part, some in pairs.items()}
    sizes = Sizes(options.n_train, options.n_validation, options.n_test, options.n_heldout)
    splits, notes = split(official, sizes, data_seed, options.name)
    numbers = [float(example.answer) for example in splits["train"]]
    if min(numbers) == max(numbers):
        raise UserError(f"task={options.name}: every training number is {numbers[0]:g}; there is nothing to learn")
    center, spread = statistics.fmean(numbers), statistics.pstdev(numbers)

    def standardised(examples: Sequence[Example]) -> tuple[Example, ...]:
        numbers = [(float(example.answer) - center) / spread for example in examples]
        return tuple(
            replace(example, meta={**example.meta, "standardised": number})
            for example, number in zip(examples, numbers, strict=True)
        )

    return RegressionTask(
        name=options.name,
        kind="regression",
        train=standardised(splits["train"]),
        validation=standardised(splits["validation"]),
        test=standardised(splits["test"]),
        heldout=standardised(splits["heldout"]),
        labels=(options.label,),
        metric="closeness",
        corpus="correlation",
        center=center,
        spread=spread,
        low=min(numbers),
        high=max(numbers),
        max_new_tokens=1,
        lr=options.lr,
        head_lr=options.head_lr,
        steps=options.steps,
        batch_size=options.batch_size,
        notes=with_remarks(notes, source),
    )
