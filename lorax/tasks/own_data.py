"""The user's own data: `jsonl` for text to text, `text_classification` for text to class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from lorax.errors import UserError, near
from lorax.tasks import extractors
from lorax.tasks.base import Example, Task, prompt_id
from lorax.tasks.chats import Exchange, read_exchange
from lorax.tasks.classes import check_classes
from lorax.tasks.columns import FIELDS, beside, layout_of
from lorax.tasks.dialogues import TURNS, asked_id, own_system, trained_turns
from lorax.tasks.readers import Format, Row, Rows, read_splits, text, written
from lorax.tasks.registry import register
from lorax.tasks.splitting import Sizes, split
from lorax.tasks.templates import Template

QUOTES = ("auto", "syntax", "text")
UNNAMED = ("prompt", "answer")
"""The fields of prompt and answer where nobody has named any: others that are known may stand for them."""
LONGEST_PATH = 1000


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where rows come from, and how many of them each split gets."""

    name: str
    path: str | None = None
    """A file, a folder with train.*, validation.* and test.*, or a hub id."""
    subset: str | None = None
    """Configuration name of a hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset; None: its main branch as it is now."""
    train: str | None = None
    """A file for each split, instead of or beside `path`."""
    validation: str | None = None
    test: str | None = None
    template: str | None = None
    """Text with fields in braces that makes the prompt, instead of one field; see `Template`."""
    columns: list[str] | None = None
    """Names of the columns, for CSV and TSV files without a header."""
    quotes: str | None = None
    """What `"` is in CSV and TSV files: auto (None) | syntax | text."""
    n_train: int | None = None
    """None: all there are, here and below."""
    n_validation: int | None = 500
    n_test: int | None = None
    n_heldout: int | None = 64

    def __post_init__(self) -> None:
        self._check_texts()
        if not (self.path or self.train):
            raise UserError(f"task={self.name}: give task.path=<file, folder or hub id>")
        if self.revision is not None and not self.path:
            raise UserError(f"task.revision={self.revision}: task.train is a file; give task.path=<hub id>")
        if (self.quotes or "auto") not in QUOTES:
            raise UserError(f"task.quotes={self.quotes}: {near(self.quotes, QUOTES)}")
        if self.columns is not None and not _are_names(self.columns):
            raise UserError(f"task.columns={self.columns}: a list of different names, one for each column")
        if self.template is not None:
            assert self.joined.fields

    def _check_texts(self) -> None:
        """Refuse what is no text where one is needed, and paths that no system takes."""
        for item in fields(self):
            found = getattr(self, item.name)
            if item.type in ("str", "str | None") and not isinstance(found, str | None) and item.name != "template":
                way = "; task.template joins several fields" if item.name in ("prompt", "text") else ""
                raise UserError(f"task.{item.name}={found}: one text is needed{way}")
            if item.name in ("path", "train", "validation", "test") and found and len(found) > LONGEST_PATH:
                raise UserError(f"task.{item.name}={found[:40]}...: {len(found):,} characters are no path")

    @cached_property
    def joined(self) -> Template:
        """The template, parsed; there must be one."""
        assert self.template is not None
        return Template(self.template)

    def rows(self, asked: str, answer: str, *others: str) -> dict[str, Rows]:
        """Return the rows of every split; of their fields those that are named, and those of the template.

        Raises:
            UserError: the template gives the answer away; a source that cannot be read.
        """
        if self.template is not None and answer in self.joined.fields:
            raise UserError(f"task.template={self.template!r}: {{{answer}}} is the answer; a prompt must not hold it")
        used = frozenset((asked, answer, *others)) | frozenset(self.joined.fields if self.template is not None else ())
        used |= FIELDS if (asked, answer) == UNNAMED and self.template is None else frozenset()
        return self.all_rows(used)

    def all_rows(self, used: frozenset[str] | None = None) -> dict[str, Rows]:
        """Return the rows of every split; of their fields those that are used, None: all."""
        files = {"train": self.train, "validation": self.validation, "test": self.test}
        names = tuple(self.columns) if self.columns else None
        return read_splits(
            self.path or "", self.subset, files, Format(names, self.quotes or "auto", used), self.revision
        )


def _are_names(columns: Any) -> bool:
    is_list = isinstance(columns, list | tuple) and bool(columns)
    return is_list and all(isinstance(name, str) for name in columns) and len(set(columns)) == len(columns)


@register("jsonl")
@dataclass(frozen=True, kw_only=True)
class TextToText(Files):
    """Prompts and answers from JSONL, JSON, CSV, TSV or parquet files, or a hub dataset."""

    name: str = "jsonl"
    prompt: str = "prompt"
    """The field that holds the prompt."""
    answer: str = "answer"
    """The field that holds the answer."""
    turns: str = "all"
    """Of conversations of several turns, the assistant's that are trained on: all | last. Scored is the last."""
    max_length: int | None = None
    """Tokens of a training example at most; longer ones are cut on the right. None: they are refused."""
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
        if self.turns not in TURNS:
            raise UserError(f"task.turns={self.turns}: {near(self.turns, TURNS)}")
        for name in (self.extractor, self.tolerant):
            if name not in extractors.names():
                raise UserError(f"task.extractor={name}: {near(name, extractors.names())}")

    def load(self, data_seed: int) -> Task:
        """Read and split the rows; UserError names file and line of one that cannot be used."""
        rows = self.rows(self.prompt, self.answer)
        layout = layout_of(rows) if self._is_unnamed else None
        if layout is not None:
            rows["train"].remarks.append(layout.words)
            reader = replace(self, prompt=layout.prompt, answer=layout.answer, template=layout.template)
            return reader.task({part: [reader.beside(row) for row in rows[part]] for part in rows}, rows, data_seed)
        return self.task({part: [self.example(row) for row in rows[part]] for part in rows}, rows, data_seed)

    @property
    def _is_unnamed(self) -> bool:
        return (self.prompt, self.answer) == UNNAMED and self.template is None

    def task(self, official: Mapping[str, Sequence[Example]], rows: Mapping[str, Rows], data_seed: int) -> Task:
        """Return the task of examples as they were read, from these rows."""
        system, official = self._system({part: list(zip(official[part], rows[part], strict=True)) for part in official})
        sizes = Sizes(self.n_train, self.n_validation, self.n_test, self.n_heldout, self.shots)
        splits, notes = split(official, sizes, data_seed, self.name)
        splits, said = trained_turns(splits, self.turns)
        notes["data"] = "; ".join([notes["data"], *said])
        if not splits["train"]:
            raise UserError(f"task={self.name}: {notes['data']}: nothing is left to train on")
        return Task(
            name=self.name,
            kind="generation",
            **splits,
            system=system,
            max_length=self.max_length,
            max_new_tokens=self.max_new_tokens,
            strict=self.extractor,
            tolerant=self.tolerant,
            lr=self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            notes=with_remarks(notes, rows),
        )

    def example(self, row: Row) -> Example:
        """Return one row as question and answer; a dataset with rules of its own overrides this."""
        return self._made(self._exchange(row))

    def beside(self, row: Row) -> Example:
        """Return one row of a known layout, with its system text and its history where they have columns."""
        exchange = self._exchange(row)
        return self._made(beside(row, exchange) if self.template is not None else exchange)

    def _exchange(self, row: Row) -> Exchange:
        if self.template is not None:
            return Exchange(self.joined.fill(row), text(row, self.answer))
        return read_exchange(row, self.prompt, self.answer)

    def _made(self, exchange: Exchange) -> Example:
        meta = {} if exchange.system is None else {"system": exchange.system}
        prompt, history = exchange.prompt, exchange.history
        return Example(asked_id(prompt, history), prompt, str(exchange.answer), meta=meta, history=history)

    def _system(
        self, official: Mapping[str, Sequence[tuple[Example, Row]]]
    ) -> tuple[str | None, dict[str, list[Example]]]:
        """Return the task's system text, the user's or that of all conversations, and the examples.

        Where conversations have different ones, or only some have one, each keeps its own.

        Raises:
            UserError: a conversation with another system text than `task.system`.
        """
        examples = {part: [example for example, _ in pairs] for part, pairs in official.items()}
        owns = {example.meta.get("system") for part in examples.values() for example in part}
        if self.system is not None:
            for example, (where, _) in (pair for pairs in official.values() for pair in pairs):
                if example.meta.get("system") not in (None, self.system):
                    raise UserError(f"{where}: another system text than task.system")
            return self.system, examples
        if len(owns) <= 1:
            return next(iter(owns), None), examples
        return None, {part: [own_system(example) for example in some] for part, some in examples.items()}


@dataclass(frozen=True)
class Two:
    """Two texts that belong together."""

    first: str
    second: str


Asked = str | Two
"""What is classified."""


def both_of(row: Row, first: str, second: str) -> Two:
    """Return two fields of a row; one of them may be empty.

    Raises:
        UserError: both are empty, or one is missing or no text; names the place.
    """
    two = Two(written(row, first), written(row, second))
    if not two.first and not two.second:
        raise UserError(f"{row[0]}: fields {first!r} and {second!r} are empty")
    return two


def example_of(words: Asked, answer: str) -> Example:
    """Return an example that asks about one text, or about two: its prompt then holds both, a line each."""
    if isinstance(words, str):
        return Example(prompt_id(words), words, answer)
    prompt = f"{words.first}\n{words.second}"
    return Example(prompt_id(prompt), prompt, answer, meta={"pair": (words.first, words.second)})


@register("text_classification")
@dataclass(frozen=True, kw_only=True)
class TextClassification(Files):
    """Texts and classes from the same sources; the model gets a fresh head with one output per class."""

    name: str = "text_classification"
    text: str = "text"
    """The field that holds the text."""
    second: str | None = None
    """The field that holds the second text, where texts come in pairs."""
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
        rows = self.rows(self.text, self.label, *([] if self.second is None else [self.second]))
        return classification(self, {part: self.pairs(rows[part]) for part in rows}, data_seed, rows)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.second is not None and self.template is not None:
            raise UserError("task.second and task.template: a pair of texts, or one made of several fields, not both")

    def pairs(self, rows: Iterable[Row]) -> list[tuple[Asked, str]]:
        """Return rows as (text or pair of texts, class)."""
        if self.second is not None:
            return [(both_of(row, self.text, self.second), text(row, self.label)) for row in rows]
        if self.template is not None:
            return [(self.joined.fill(row), text(row, self.label)) for row in rows]
        return [(text(row, self.text), text(row, self.label)) for row in rows]


def classification(
    options: TextClassification,
    pairs: Mapping[str, Sequence[tuple[Asked, str]]],
    data_seed: int,
    source: Mapping[str, Rows] | None = None,
) -> Task:
    """Build a classification task from texts, or pairs of texts, and their classes.

    Args:
        options: sizes and training defaults.
        pairs: train, and where given validation and test.
        data_seed: decides which example enters which split.
        source: the rows that the pairs were made of, for their remarks.

    Raises:
        UserError: a class in validation or test that train does not have; fewer than two classes; labels that
            are no classes.
    """
    check_classes({label for some in pairs.values() for _, label in some}, f"task={options.name}")
    names = tuple(sorted({label for _, label in pairs["train"]}))
    number = {label: index for index, label in enumerate(names)}
    if len(names) < 2:
        raise UserError(f"task={options.name}: {len(names)} class in the training rows; at least two are needed")
    for part, rows in pairs.items():
        for _, label in rows:
            if label not in number:
                raise UserError(f"task={options.name}: class {label!r} in {part}; {near(label, names)}")
    official = {
        part: [replace(example_of(words, label), label=number[label]) for words, label in rows]
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
        notes=with_remarks(notes, source or {}),
    )


def with_remarks(notes: dict[str, Any], rows: Mapping[str, Rows]) -> dict[str, Any]:
    """Return a task's notes, with what is worth saying about how its rows were read, and from which commit."""
    remarks = dict.fromkeys(remark for part in rows.values() for remark in part.remarks)
    hub = next((part.hub for part in rows.values() if part.hub), {})
    return notes | {"data": "; ".join([notes["data"], *remarks])} | ({"hub": hub} if hub else {})
