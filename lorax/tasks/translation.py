"""Machine translation: pairs from tables, message catalogues (PO, MO) or the hub, scored by chrF."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorax.errors import UserError, near
from lorax.tasks.base import Example, Task, prompt_id
from lorax.tasks.own_data import Files, with_remarks
from lorax.tasks.readers import Row, Rows, text
from lorax.tasks.registry import register
from lorax.tasks.splitting import Sizes, split
from lorax.tasks.translations import Translations

MARKUP = ("keep", "drop")
_NESTED = "translation"
"""The column of hub datasets that holds both languages: {"en": ..., "pt": ...}."""
_MARKS = re.compile(
    r"</?[A-Za-z!?]|&#?\w+;"  # tags, entities
    r"|\{[^{}]*\}|[%$][\w({]"  # placeholders: {name}, %s, %PRODUCTNAME, $(ARG1)
    r"|(?<!\w)[&_]\w|\w_\w|~"  # keys of menus: &File, _File, ~File; identifiers
    r'|\\[ntr"\\]|[\n\t]'
)


@register("translation")
@dataclass(frozen=True, kw_only=True)
class Translation(Files):
    """Sentences in one language and their translations; a source is kept once, and split by its hash."""

    name: str = "translation"
    source: str = "source"
    """The field that holds the sentence to translate; of catalogues `source` and `target`, of hub sets a language."""
    target: str = "target"
    """The field that holds its translation."""
    system: str | None = None
    markup: str = "keep"
    """keep | drop: whether pairs with tags, placeholders, keys of menus or line breaks are left out."""
    min_words: int = 1
    """Of a source; shorter ones are left out."""
    max_words: int | None = None
    """Of a source; longer ones are left out."""
    max_tokens: int | None = 256
    """Of source and target for an encoder-decoder; longer ones are cut, and it is said. None: refused where they do not
    fit."""
    max_new_tokens: int = 128
    lr: float = 1e-3
    steps: int = 100
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.markup not in MARKUP:
            raise UserError(f"task.markup={self.markup}: {near(self.markup, MARKUP)}")
        if self.source == self.target:
            raise UserError(f"task.source={self.source}: the same field as task.target")
        for key, least in (("min_words", 0), ("max_words", max(1, self.min_words)), ("max_tokens", 2)):
            given = getattr(self, key)
            if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < least):
                raise UserError(f"task.{key}={given}: an integer of at least {least}")

    def load(self, data_seed: int) -> Task:
        """Read, filter and split the pairs; UserError names file and line of one that cannot be used."""
        rows = self.rows(self.source, self.target, _NESTED)
        left: Counter[str] = Counter()
        official = {part: self._kept(rows[part], left) for part in rows}
        out = [f"left out {', '.join(f'{count:,} {why}' for why, count in left.items())}"] if left else []
        sizes = Sizes(self.n_train, self.n_validation, self.n_test, self.n_heldout)
        try:
            splits, notes = split(official, sizes, data_seed, self.name)
        except UserError as error:
            raise UserError("; ".join([str(error), *out])) from None
        said = with_remarks(notes, rows)["data"]
        parts = [*out, said, *_overlap(official, splits["train"], splits["test"])]
        return Translations(
            name=self.name,
            kind="generation",
            **splits,
            system=self.system,
            max_new_tokens=self.max_new_tokens,
            longest=self.max_tokens,
            lr=self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            notes=notes | {"data": "; ".join(parts)},
        )

    def _kept(self, rows: Rows, left: Counter[str]) -> list[Example]:
        """Return the pairs that the options keep; counts the others by reason."""
        examples = []
        for row in map(self._flat, rows):
            source, target = text(row, self.source), text(row, self.target)
            words = len(source.split())
            if self.markup == "drop" and (_MARKS.search(source) or _MARKS.search(target)):
                left["with markup"] += 1
            elif words < self.min_words:
                left[f"under {self.min_words} words"] += 1
            elif self.max_words is not None and words > self.max_words:
                left[f"over {self.max_words} words"] += 1
            else:
                prompt = source if self.template is None else self.joined.fill(row)
                examples.append(Example(prompt_id(prompt), prompt, target, meta={"source": source}))
        return examples

    def _flat(self, row: Row) -> Row:
        """Return a row with the languages of a `translation` column as fields of its own."""
        where, fields = row
        nested = fields.get(_NESTED)
        return (where, {**fields, **nested}) if self.source not in fields and isinstance(nested, Mapping) else row


def _overlap(official: Mapping[str, Sequence[Example]], train: Iterable[Example], test: Sequence[Example]) -> list[str]:
    """Say what test shares with train: sources, which train gives up, and references of other sources, which stay."""
    tested = {example.id for example in official.get("test", ())}
    shared = sum(example.id in tested for example in official["train"])
    known = {prompt_id(example.answer) for example in train}
    again = sum(prompt_id(example.answer) in known for example in test)
    said = [f"{shared:,} training sources stand in test too and were taken out of train"] if shared else []
    return [*said, f"{again:,} of {len(test):,} test references are also those of other sources in train"]
