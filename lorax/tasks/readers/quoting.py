"""Whether a `"` in a table is syntax or text: the reading in which no row is lost, or a line that asks.

A table is split twice, with quotes as syntax (RFC 4180) and as text (every physical line is a row). A reading
*fits* if each of its rows has as many fields as the header. In comma-separated files quotes are syntax if that
fits; in tab-separated files they are text if that fits, unless the file shows a writer that quotes. A quote that
opens in one line and closes in a later one, where those lines are also rows by themselves, is never taken as syntax.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from lorax.errors import UserError

ASK = 'say which: task.quotes=syntax, or task.quotes=text where a " is a character'


@dataclass(frozen=True)
class Record:
    """The fields of one row, and the lines it stands on."""

    first: int
    last: int
    fields: list[str]


@dataclass(frozen=True)
class Split:
    """A table, split in one way."""

    records: list[Record]
    """The header's too, blank lines left out."""
    width: int
    problem: str | None
    """The first line that does not fit; None: it fits."""
    place: int = 0
    """Number of that line."""


def split_table(
    content: str, delimiter: str, columns: Sequence[str] | None, quotes: str, where: str
) -> tuple[Split, str]:
    """Split a table into records, quotes as syntax or as text.

    Args:
        content: the whole table.
        delimiter: one character.
        columns: names of the columns where the table has no header.
        quotes: auto | syntax | text.
        where: the file, for messages.

    Returns:
        The records, and a remark where quotes were not read as usual for this kind of file, else "".

    Raises:
        UserError: neither reading fits (names the line), or one cannot tell which of them is meant.
    """
    width = len(columns) if columns else None
    plain = _split(content, delimiter, width, csv.QUOTE_NONE)
    if '"' not in content or quotes == "text":
        return _fitting(plain, where), "quotes read as text" if '"' in content and delimiter != "\t" else ""
    syntax = _split(content, delimiter, width, csv.QUOTE_MINIMAL)
    if quotes == "syntax":
        return _fitting(syntax, where), "quotes read as syntax" if delimiter == "\t" else ""
    if delimiter == "\t":
        return _tabs(plain, syntax, where)
    return _commas(plain, syntax, where, content, delimiter)


def _tabs(plain: Split, syntax: Split, where: str) -> tuple[Split, str]:
    """Choose for tab-separated files: text, unless only syntax fits or the file shows a writer that quotes."""
    if plain.problem is None:
        same_rows = syntax.problem is None and len(syntax.records) == len(plain.records)
        if same_rows and _shows_quoting(plain.records):
            return syntax, "quotes read as syntax"
        return plain, ""
    if syntax.problem is not None:
        return _fitting(plain, where), ""
    for record in syntax.records:
        if record.last > record.first and any("\t" in words and "\n" in words for words in record.fields):
            raise UserError(f'{where}, line {record.first}: a " opens that closes in line {record.last}; {ASK}')
    return syntax, "quotes read as syntax"


def _commas(plain: Split, syntax: Split, where: str, content: str, delimiter: str) -> tuple[Split, str]:
    """Choose for files with commas or semicolons: syntax, unless only text fits or a quote swallows rows."""
    if syntax.problem is not None:
        if plain.problem is not None:
            return _fitting(syntax, where), ""
        return plain, "quotes read as text"
    swallowing = _swallowing(plain, syntax, content, delimiter)
    if swallowing is not None:
        rows = f"without quotes {swallowing.last - swallowing.first + 1} rows"
        place = f'{where}, line {swallowing.first}: a " opens that closes in line {swallowing.last}'
        raise UserError(f"{place}, {rows}; {ASK}")
    return syntax, ""


def _swallowing(plain: Split, syntax: Split, content: str, delimiter: str) -> Record | None:
    """Return a record over several lines that are rows by themselves, if it is likelier that they are.

    They are where all of the file fits without quotes, or where such a line ends in a value of the last column.
    """
    lines = _lines(content)
    known = {
        record.fields[-1] for record in syntax.records if record.last == record.first and record.fields[-1].strip()
    }
    for record in syntax.records:
        if record.last == record.first:
            continue
        alone = [lines[number - 1].rstrip("\r\n").split(delimiter) for number in range(record.first, record.last + 1)]
        if all(len(fields) == syntax.width for fields in alone):
            if plain.problem is None or any(fields[-1] in known for fields in alone[:-1]):
                return record
    return None


_QUOTED = re.compile(r'"(?:[^"]|"")*"', re.DOTALL)


def _shows_quoting(records: Sequence[Record]) -> bool:
    """Return whether quotes are a writer's: each field with one is well quoted, and some of them had to be.

    They had to be where a `"` inside is doubled, or where a whole column is quoted, its name too.
    """
    touched = [words for record in records for words in record.fields if '"' in words]
    if not all(_QUOTED.fullmatch(words) for words in touched):
        return False
    if any('""' in words[1:-1] for words in touched):
        return True
    columns = list(zip(*(record.fields for record in records), strict=True))
    return len(records) > 1 and any(all(words[:1] == '"' for words in column) for column in columns)


def _fitting(split: Split, where: str) -> Split:
    if split.problem is not None:
        raise UserError(f"{where}, line {split.place}: {split.problem}")
    return split


def _split(content: str, delimiter: str, width: int | None, quoting: Literal[0, 3]) -> Split:
    """Split a table in one way, up to the first row that does not fit."""
    records: list[Record] = []
    first, spaced = 1, _spaced(content, delimiter)
    with _any_length():
        reader = csv.reader(
            _lines(content), delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=spaced
        )  # fmt: skip
        try:
            for fields in reader:
                if fields:
                    width = width or len(fields)
                    records.append(Record(first, reader.line_num, fields))
                    if len(fields) != width:
                        columns = "column" if len(fields) == 1 else "columns"
                        return Split(records, width, f"{len(fields)} {columns} where the header has {width}", first)
                first = reader.line_num + 1
        except csv.Error as error:
            return Split(records, width or 0, str(error), first)
    return Split(records, width or 0, None)


def _lines(content: str) -> list[str]:
    """Return physical lines with their ends: line feed, carriage return or both, nothing else."""
    return list(io.StringIO(content, newline=""))


def _spaced(content: str, delimiter: str) -> bool:
    """Return whether the first line has a space after every delimiter, before a quote or a name."""
    first = content[: content.find("\n")] if "\n" in content else content
    return delimiter != "\t" and 0 < first.count(delimiter) == first.count(delimiter + " ")


@contextmanager
def _any_length() -> Iterator[None]:
    """Let fields be longer than the 131,072 characters that csv allows by itself."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
