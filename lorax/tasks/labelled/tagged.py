"""Tagged words: `token_classification` for named entities, slots, parts of speech; scored by span, as CoNLL does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lorax.errors import UserError
from lorax.stats.measures.corpus import written_spans
from lorax.tasks.base import Example, Task, prompt_id
from lorax.tasks.own_data import Files, with_remarks
from lorax.tasks.readers import Row, Rows, read_splits, text
from lorax.tasks.readers.columns import folder_columns, is_columns, read_columns
from lorax.tasks.readers.rows import Format, is_missing, value
from lorax.tasks.readers.sources import existing
from lorax.tasks.registry import register
from lorax.tasks.splitting import Sizes, split

OUTSIDE = "O"
_IN_SPAN = re.compile(r"[BIESLU]-\S+")
_WORD = re.compile(r"\w+|[^\w\s]")
_SAME = {"L": "E", "U": "S"}
"""The same mark by another name: last is end, unit is single."""


class Tagging(NamedTuple):
    """A text's words, and the tag of each."""

    words: list[str]
    tags: list[str]
    inexact: bool = False
    """Whether a span ended inside of a word, and the word was counted to it."""


@dataclass(frozen=True, kw_only=True)
class TagTask(Task):
    """Texts whose words have tags. `Example.meta` holds `words` and `tags`; `gold` is what their spans are."""

    def written(self, words: int, tags: Mapping[int, int]) -> str:
        """Return what an item holds of predicted tags.

        Args:
            words: in the text.
            tags: number of a word -> number of its tag; a word without one is outside of all spans, or `none`.
        """
        assert self.labels is not None
        missing = OUTSIDE if self.corpus == "spans" else "none"
        named = [self.labels[tags[word]] if word in tags else missing for word in range(words)]
        return written_tags(named, self.corpus == "spans")


def written_tags(tags: Sequence[str], spans: bool) -> str:
    """Return tags as the text that an answer is scored by.

    Spans are read as conlleval does (and seqeval, whose function this is): an I- that continues nothing, or another
    type, begins a span.

    Examples:
        >>> written_tags(["O", "B-artist", "I-artist", "I-date"], spans=True)
        'artist[1:3] date[3:4]'
    """
    if not spans:
        return " ".join(tags)
    from seqeval.metrics.sequence_labeling import get_entities

    marked = [_SAME.get(tag[0], tag[0]) + tag[1:] for tag in tags]
    return written_spans([(kind, start, end + 1) for kind, start, end in get_entities(marked)])


@register("token_classification")
@dataclass(frozen=True, kw_only=True)
class TokenClassification(Files):
    """Tagged words from files of columns (CoNLL), rows with tokens and tags or a text with spans, or a hub dataset."""

    name: str = "token_classification"
    tokens: str = "tokens"
    """The field, or the column, that holds the words."""
    tags: str = "tags"
    """The field, or the column, that holds their tags."""
    text: str = "text"
    """The field that holds the text, in rows without tokens."""
    spans: str = "spans"
    """The field that holds its spans: start and end in characters, label."""
    n_validation: int | None = 1000
    n_heldout: int | None = 256
    lr: float = 4e-3
    head_lr: float | None = 5e-3
    steps: int = 300
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None:
            raise UserError(f"task.template={self.template}: {self.name} tags the words of one text")

    def load(self, data_seed: int) -> Task:
        """Read and split the sentences; UserError names file and line of one that cannot be used."""
        rows = self.sentences()
        tagged = {part: [self.tagging(row) for row in some] for part, some in rows.items()}
        return tagging_task(self, tagged, data_seed, rows)

    def sentences(self) -> dict[str, Rows]:
        """Return the rows of every split, of columns or of fields."""
        files = {key: existing(path, f"task.{key}") for key in ("train", "validation", "test")
                 if (path := getattr(self, key)) is not None}  # fmt: skip
        local = Path(self.path or "").expanduser()
        if self.path and local.is_file() and is_columns(local):
            files = {"train": local} | files
        elif self.path and local.is_dir():
            files = folder_columns(local) | files
        in_columns = {key: file for key, file in files.items() if is_columns(file)}
        names = None if self.columns is None else tuple(self.columns)
        if in_columns and len(in_columns) == len(files):
            if "train" not in files:
                raise UserError(f"task={self.name}: no training sentences; give task.train=<file>")
            return {key: read_columns(file, names, self.tokens, self.tags) for key, file in files.items()}
        if in_columns:
            file = next(iter(in_columns.values()))
            raise UserError(f"{file}: columns beside files of another kind; write all splits alike")
        given = {key: str(file) for key, file in files.items()}
        used = frozenset((self.tokens, self.tags, self.text, self.spans))
        return read_splits(self.path or "", self.subset, dict(given), Format(names, self.quotes or "auto", used))

    def tagging(self, row: Row) -> Tagging:
        """Return words and tags of a row: with tokens and tags, or text and spans."""
        if self.tokens not in row[1] and self.text in row[1] and self.spans in row[1]:
            return of_spans(text(row, self.text), _spans_of(row, self.spans), row[0])
        words, tags = _texts(row, self.tokens), _texts(row, self.tags)
        if len(words) != len(tags):
            raise UserError(f"{row[0]}: {len(words)} tokens, {len(tags)} tags")
        return Tagging(words, tags)


def of_spans(words: str, spans: Sequence[tuple[int, int, str]], where: str) -> Tagging:
    """Return a text's words with the tags of its spans.

    Words are runs of letters and digits, and each other sign by itself, wherever spans end: what is to be found must
    not show in how the text is cut.

    Raises:
        UserError: spans overlap, or lie outside of the text; names the place.
    """
    found = list(_WORD.finditer(words))
    tags, inexact, last = [OUTSIDE] * len(found), False, 0
    for start, end, kind in sorted(spans):
        if not 0 <= start < end <= len(words):
            raise UserError(f"{where}: span {start} to {end} is not in the text of {len(words)} characters")
        if start < last:
            raise UserError(f"{where}: span {start} to {end} ({kind}) overlaps another")
        last = end
        inside = [at for at, match in enumerate(found) if match.start() < end and match.end() > start]
        free = [at for at in inside if tags[at] == OUTSIDE]  # of two spans in one word the first has it
        for at in free:
            tags[at] = f"{'B' if at == free[0] else 'I'}-{kind}"
        whole = not inside or start <= found[inside[0]].start() <= found[inside[-1]].end() <= end
        inexact |= free != inside or not whole
    return Tagging([match.group() for match in found], tags, inexact)


def _spans_of(row: Row, key: str) -> list[tuple[int, int, str]]:
    found, where = value(row, key), row[0]
    if is_missing(found):
        return []
    if not isinstance(found, list):
        raise UserError(f"{where}: field {key!r} is no list of spans")
    spans = []
    for number, span in enumerate(found, start=1):
        place = (f"{where}, span {number}", span if isinstance(span, dict) else {})
        start, end = value(place, "start"), value(place, "end")
        if not all(isinstance(bound, int) and not isinstance(bound, bool) for bound in (start, end)):
            raise UserError(f"{place[0]}: start {start!r} and end {end!r} are characters' numbers")
        spans.append((start, end, text(place, "label")))
    return spans


def _texts(row: Row, key: str) -> list[str]:
    """Return a field that is a list of texts, or one text with spaces between them."""
    found = value(row, key)
    if isinstance(found, str):
        found = found.split()
    if not isinstance(found, list | tuple):
        raise UserError(f"{row[0]}: field {key!r} is no list of texts")
    for number, item in enumerate(found, start=1):
        if not isinstance(item, str) or not item.strip():
            way = "; numbers of tags have no names here" if isinstance(item, int) else ""
            raise UserError(f"{row[0]}: field {key!r}, item {number} is {item!r}, no text{way}")
    return [" ".join(item.split()) for item in found]


def tagging_task(
    options: TokenClassification, tagged: Mapping[str, Sequence[Tagging]], data_seed: int, source: Mapping[str, Rows]
) -> TagTask:
    """Build a task from tagged sentences.

    Args:
        options: sizes and training defaults.
        tagged: train, and where given validation and test.
        data_seed: decides the cut.
        source: for remarks on how they were read.

    Raises:
        UserError: fewer than two tags; a tag with white space in it.
    """
    names = {tag for some in tagged.values() for one in some for tag in one.tags}
    if broken := sorted(name for name in names if " " in name):
        raise UserError(f"task={options.name}: the tag {broken[0]!r} has a space in it")
    spans = OUTSIDE in names and all(name == OUTSIDE or _IN_SPAN.fullmatch(name) for name in names)
    if spans:  # a span of one word in training may be longer in test
        names |= {f"I-{name[2:]}" for name in names if name.startswith("B-")}
    if len(names) < 2:
        raise UserError(f"task={options.name}: {len(names)} tag; at least two are needed")
    official, empty = {}, 0
    for part, some in tagged.items():
        official[part] = [
            Example(
                prompt_id(prompt := " ".join(words)), prompt, " ".join(tags),
                meta={"gold": written_tags(tags, spans), "words": words, "tags": tags},
            )
            for words, tags, _ in some if words
        ]  # fmt: skip
        empty += len(some) - len(official[part])
    sizes = Sizes(options.n_train, options.n_validation, options.n_test, options.n_heldout)
    splits, notes = split(official, sizes, data_seed, options.name)
    if empty:
        notes["data"] += f"; {empty:,} without a word left out"
    if inexact := sum(one.inexact for some in tagged.values() for one in some):
        notes["data"] += f"; {inexact:,} with a span that ends inside of a word, which is counted to it"
    if spans and splits["test"]:
        bare = sum(example.gold == "none" for example in splits["test"]) / len(splits["test"])
        notes["data"] += f"; {len(names)} tags; {100 * bare:.1f} % of the test sentences have no span"
    return TagTask(
        name=options.name,
        kind="token_classification",
        **splits,
        labels=tuple(sorted(names)),
        strict="exact",
        tolerant="exact",
        metric="sentences_right",
        corpus="spans" if spans else "tags",
        max_new_tokens=1,
        lr=options.lr,
        head_lr=options.head_lr,
        steps=options.steps,
        batch_size=options.batch_size,
        notes=with_remarks(notes, source),
    )
