"""Natural text that no task trains on, for forgetting: CPython's language reference, or a text of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorax.errors import UserError, hub_reason, near
from lorax.tasks.readers import Format, read, written
from lorax.tasks.readers.opening import KINDS, suffix_of

PLAIN = (".txt", ".md", ".rst")
TABLES = tuple(suffix for suffix in KINDS if suffix not in PLAIN)
COLUMN = "text"


@dataclass(frozen=True)
class Text:
    """A text and its source."""

    text: str
    source: str
    """For the record: what it is, version or path, licence where known."""

    @property
    def digest(self) -> str:
        """Digest of the text itself."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]


def load_text(path: str | None = None, column: str = COLUMN, characters: int | None = None) -> Text:
    """Return the text that forgetting is measured on.

    Args:
        path: None: the language reference that every CPython carries for its `help()`
            (`pydoc_data/topics.py`, about 450,000 characters of English prose with examples, PSF
            licence); a .txt, .md or .rst file; a table that tasks read too (.jsonl, .csv, .parquet, ...) with a
            column of texts; or the id of a hub dataset (its train split; needs `datasets`).
        column: of tables and datasets.
        characters: stop after the row or topic that reaches this number of characters; None: read all.

    Raises:
        UserError: no such file or column, an empty text, or an unreadable one.
    """
    if path is None:
        return _language_reference(characters)
    file = Path(path)
    if file.suffix in PLAIN and file.is_file():
        try:
            return _joined([file.read_text(encoding="utf-8")], file.name, characters)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"text={path}: {error}") from None
    if suffix_of(file) in TABLES and file.is_file():
        return _joined(_table(file, column), f"{file.name}:{column}", characters)
    if file.exists() or file.suffix in PLAIN or suffix_of(file) in TABLES:
        problem = f"not one of {', '.join(PLAIN + TABLES)}" if file.exists() else "no such file"
        raise UserError(f"text={path}: {problem}")
    return _joined(_hub(path, column), f"{path}:{column} (hub)", characters)


def _language_reference(characters: int | None) -> Text:
    import platform
    from pydoc_data.topics import topics

    source = f"CPython {platform.python_version()} language reference (pydoc_data/topics.py, PSF licence)"
    return _joined((topics[key] for key in sorted(topics)), source, characters)


def _joined(parts: Iterable[str], source: str, characters: int | None) -> Text:
    taken, total = [], 0
    for part in parts:
        taken.append(part)
        total += len(part)
        if characters is not None and total >= characters:
            break
    if not total:
        raise UserError(f"text={source}: the text is empty")
    return Text("\n\n".join(taken), source)


def _table(file: Path, column: str) -> Iterable[str]:
    """Return a column's texts, the empty ones left out; a value that is no text is refused by its row."""
    rows = read(file, Format(used=frozenset([column])))
    if column not in rows.rows[0][1]:
        raise UserError(f"text={file}: no column {column!r}; {near(column, rows.rows[0][1])}")
    return [words for row in rows if (words := written(row, column))]


def _hub(name: str, column: str) -> Iterable[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"text={name}: a hub dataset needs `pip install lorax-bench[hub]`") from None
    try:
        rows = load_dataset(name, split="train", streaming=True)
        first: Mapping[str, object] = next(iter(rows), {})
    except Exception as error:  # network, authorisation, unknown name: of many types
        raise UserError(f"text={name}: no such file, and not readable from the hub: {hub_reason(error)}") from None
    if column not in first:
        raise UserError(f"text={name}: no column {column!r}; {near(column, first)}")
    return (str(row[column]) for row in rows if row[column])
