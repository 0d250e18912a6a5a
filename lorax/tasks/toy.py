"""A task that the toy model learns in about fifty steps: name the first letter of a word."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lorax.errors import UserError, near
from lorax.tasks.base import Example, Task, prompt_id
from lorax.tasks.reasoning import fill
from lorax.tasks.registry import register

LETTERS = "abcdefgh"


@register("toy")
@dataclass(frozen=True, kw_only=True)
class Toy:
    """Words of random letters a to h; the answer is the first letter, written or as a class."""

    name: str = "toy"
    kind: str = "generation"
    """generation | classification."""
    length: int = 6
    """Letters in a word: 8^length different prompts."""
    letters: int = 4
    """How many different letters can come first."""
    n_train: int = 512
    n_validation: int = 64
    n_test: int = 64
    n_heldout: int = 32
    shots: int = 0
    lr: float = 1e-2
    head_lr: float | None = 1e-2
    steps: int = 50
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.kind not in ("generation", "classification"):
            raise UserError(f"task.kind={self.kind}: {near(self.kind, ['generation', 'classification'])}")
        if not 2 <= self.letters <= len(LETTERS):
            raise UserError(f"task.letters={self.letters}: must be between 2 and {len(LETTERS)}")

    def load(self, data_seed: int) -> Task:
        """Draw the words and split them by their hash."""
        wanted = {
            "train": self.n_train, "validation": self.n_validation, "test": self.n_test,
            "heldout": self.n_heldout, "shots": self.shots,
        }  # fmt: skip
        distinct = self.letters * len(LETTERS) ** (self.length - 1)
        if sum(wanted.values()) > distinct / 10:
            raise UserError(
                f"task={self.name}: {sum(wanted.values())} examples asked for; at most a tenth of the {distinct} "
                f"distinct prompts, {distinct // 10}, may be drawn"
            )
        splits, _, repeats = fill(wanted, iter(()), self._stream(data_seed), self.name)
        classes = self.kind == "classification"
        return Task(
            name=self.name,
            kind=self.kind,
            **splits,
            labels=tuple(LETTERS[: self.letters]) if classes else None,
            metric="accuracy" if classes else "exact_match",
            max_new_tokens=4,
            lr=self.lr,
            head_lr=self.head_lr if classes else None,
            steps=self.steps,
            batch_size=self.batch_size,
            notes={"distinct_prompts": distinct, "duplicates": repeats},
        )

    def _stream(self, data_seed: int) -> Iterator[Example]:
        generator = random.Random(f"toy {data_seed}")
        while True:
            first = generator.choice(LETTERS[: self.letters])
            word = first + "".join(generator.choice(LETTERS) for _ in range(self.length - 1))
            label = LETTERS.index(first) if self.kind == "classification" else None
            yield Example(prompt_id(word), word, first, label)
