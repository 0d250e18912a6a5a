"""Tagged words in columns, a word a line, as CoNLL's shared tasks have them. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorax.errors import UserError
from lorax.tasks.readers.files import ALIASES
from lorax.tasks.readers.opening import stem_of, suffix_of, whole
from lorax.tasks.readers.rows import Row, Rows

SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".txt", ".tsv", ".tab")
"""Of files that are read as columns."""


def is_columns(path: Path) -> bool:
    """Return whether a file is one of columns, by its suffix."""
    return suffix_of(path) in SUFFIXES


def folder_columns(folder: Path) -> dict[str, Path]:
    """Return {split: file} of a folder's files of columns: `train.txt`, `valid.conll`, ...; {} where there is none."""
    found: dict[str, Path] = {}
    for split, stems in ALIASES.items():
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and is_columns(path)]
        named = [path for path in files if stem_of(path).lower() in stems]
        if len(named) > 1:
            both = " and ".join(path.name for path in named[:2])
            raise UserError(f"task.path={folder}: holds {both}; say which with task.{split}=<file>")
        if named:
            found[split] = named[0]
    return found


def read_columns(path: Path, columns: Sequence[str] | None, word: str, tag: str) -> Rows:
    """Return a file's sentences, each as the fields `word` and `tag`, both lists.

    Columns stand between tabs, or white space where a line has no tab; an empty line ends a sentence. Lines that begin
    with `-DOCSTART-`, and comments (`# `, in front of a sentence), do not count.

    Args:
        path: the file.
        columns: their names; None: the first is the word, the last its tag.
        word: name of the column of words, and of the field that they become.
        tag: likewise of the tags.

    Raises:
        UserError: a line with too few or another number of columns than the first, by its number; no sentence.
    """
    if columns is not None:
        for name, key in ((word, "tokens"), (tag, "tags")):
            if name not in columns:
                raise UserError(f"task.columns={list(columns)}: has no {name!r}, the column of {key} (task.{key})")
    rows: list[Row] = []
    words: list[str] = []
    tags: list[str] = []
    width, first = 0 if columns is None else len(columns), 0
    text = whole(path)
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words:
                rows.append((f"{path}, line {first}", {word: words, tag: tags}))
            words, tags = [], []
            continue
        if not words and line.startswith("# "):
            continue
        parts = [part.strip() for part in line.split("\t")] if "\t" in line else line.split()
        width = width or len(parts)
        if len(parts) != width or width < 2:
            raise UserError(
                f"{path}, line {number}: {len(parts)} columns; {max(width, 2)} are needed, a word and its tag"
            )
        first = first if words else number
        at = (0, -1) if columns is None else (columns.index(word), columns.index(tag))
        for part, key in ((parts[at[0]], word), (parts[at[1]], tag)):
            if not part:
                raise UserError(f"{path}, line {number}: column {key!r} is empty")
        words.append(parts[at[0]])
        tags.append(parts[at[1]])
    if not rows:
        raise UserError(f"{path}: no sentences; the file is empty")
    return Rows(rows)
