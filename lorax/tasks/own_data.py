"""The user's own data: `jsonl` for text to text, `text_classification` for text to class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorax.errors import UserError, near
from lorax.tasks import extractors
from lorax.tasks.base import Example, Task, prompt_id
from lorax.tasks.readers import Row, read_splits, text
from lorax.tasks.registry import register
from lorax.tasks.splitting import Sizes, split


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where rows come from, and how many of them each split gets."""

    name: str
    path: str | None = None
    """A file, a folder with train.*, validation.* and test.*, or a hub id."""
    subset: str | None = None
    """Configuration name of a hub dataset."""
    train: str | None = None
    """A file for each split, instead of or beside `path`."""
    validation: str | None = None
    test: str | None = None
    n_train: int | None = None
    """None: all there are, here and below."""
    n_validation: int | None = 500
    n_test: int | None = None
    n_heldout: int | None = 64

    def __post_init__(self) -> None:
        if not (self.path or self.train):
            raise UserError(f"task={self.name}: give task.path=<file, folder or hub id>")

    def rows(self) -> dict[str, list[Row]]:
        """Return the rows of every split that the source has."""
        files = {"train": self.train, "validation": self.validation, "test": self.test}
        return read_splits(self.path or "", self.subset, files)


@register("jsonl")
@dataclass(frozen=True, kw_only=True)
class TextToText(Files):
    """Prompts and answers from JSONL, JSON, CSV, TSV or parquet files, or a hub dataset."""

    name: str = "jsonl"
    prompt: str = "prompt"
    """The field that holds the prompt."""
    answer: str = "answer"
    """The field that holds the answer."""
    system: str | None = None
    extractor: str = "exact"
    """How the score reads a completion; see lorax/tasks/extractors.py."""
    tolerant: str = "text"
    max_new_tokens: int = 64
    shots: int = 0
    lr: float = 1e-3
    steps: int = 100
    batch_size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (self.extractor, self.tolerant):
            if name not in extractors.names():
                raise UserError(f"task.extractor={name}: {near(name, extractors.names())}")

    def load(self, data_seed: int) -> Task:
        """Read and split the rows; UserError names file and line of one that cannot be used."""
        official = {part: [self.example(row) for row in rows] for part, rows in self.rows().items()}
        sizes = Sizes(self.n_train, self.n_validation, self.n_test, self.n_heldout, self.shots)
        splits, notes = split(official, sizes, data_seed, self.name)
        return Task(
            name=self.name,
            kind="generation",
            **splits,
            system=self.system,
            max_new_tokens=self.max_new_tokens,
            strict=self.extractor,
            tolerant=self.tolerant,
            lr=self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            notes=notes,
        )

    def example(self, row: Row) -> Example:
        """Return one row as question and answer; a dataset with rules of its own overrides this."""
        prompt = text(row, self.prompt)
        return Example(prompt_id(prompt), prompt, text(row, self.answer))


@register("text_classification")
@dataclass(frozen=True, kw_only=True)
class TextClassification(Files):
    """Texts and classes from the same sources; the model gets a fresh head with one output per class."""

    name: str = "text_classification"
    text: str = "text"
    """The field that holds the text."""
    label: str = "label"
    """The field that holds the class."""
    n_validation: int | None = 1000
    n_heldout: int | None = 256
    lr: float = 2e-3
    head_lr: float | None = 1e-2
    steps: int = 200
    batch_size: int = 32

    def load(self, data_seed: int) -> Task:
        """Read and split the rows; UserError names file and line of one that cannot be used."""
        return classification(self, {part: self.pairs(rows) for part, rows in self.rows().items()}, data_seed)

    def pairs(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return rows as (text, class)."""
        return [(text(row, self.text), text(row, self.label)) for row in rows]


def classification(options: TextClassification, pairs: dict[str, list[tuple[str, str]]], data_seed: int) -> Task:
    """Build a classification task from (text, class) pairs.

    Args:
        options: sizes and training defaults.
        pairs: train, and where given validation and test.
        data_seed: decides which example enters which split.

    Raises:
        UserError: a class in validation or test that train does not have; fewer than two classes.
    """
    names = tuple(sorted({label for _, label in pairs["train"]}))
    number = {label: index for index, label in enumerate(names)}
    if len(names) < 2:
        raise UserError(f"task={options.name}: {len(names)} class in the training rows; at least two are needed")
    for part, rows in pairs.items():
        for _, label in rows:
            if label not in number:
                raise UserError(f"task={options.name}: class {label!r} in {part}; {near(label, names)}")
    official = {
        part: [Example(prompt_id(words), words, label, number[label]) for words, label in rows]
        for part, rows in pairs.items()
    }
    sizes = Sizes(options.n_train, options.n_validation, options.n_test, options.n_heldout)
    splits, notes = split(official, sizes, data_seed, options.name)
    return Task(
        name=options.name,
        kind="classification",
        **splits,
        labels=names,
        strict="exact",
        tolerant="exact",
        metric="accuracy",
        max_new_tokens=1,
        lr=options.lr,
        head_lr=options.head_lr,
        steps=options.steps,
        batch_size=options.batch_size,
        notes=notes,
    )
