"""Rows as they were read, and a field of one as text: a value that is no text is named, never printed. Torch-free."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from lorax.errors import UserError, near

Row = tuple[str, dict[str, Any]]
"""The place of a row (`file, line 12`) and its fields."""


@dataclass
class Rows:
    """Every row of a source, and what is worth saying about how it was read."""

    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    hub: dict[str, str] = field(default_factory=dict)
    """Of a dataset on the hub: its id, and the commit that was read where it is known; else nothing."""

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Format:
    """How the user's files are to be read, where they do not say it themselves."""

    columns: tuple[str, ...] | None = None
    """Names of the columns of CSV and TSV files without a header."""
    quotes: str = "auto"
    """What `"` is in CSV and TSV files: auto | syntax | text."""
    used: frozenset[str] | None = None
    """Fields that are asked for; others may hold anything. None: all."""


@dataclass(frozen=True)
class Unreadable:
    """What stands for a value that must not be used, and why: only who asks for it is told."""

    reason: str


UNREAD = Unreadable("was not read")


def named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Return values by name; a name that occurs twice gets a value that says so when it is used."""
    if len(set(names)) == len(names):
        return dict(zip(names, values, strict=True))
    fields: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        times = names.count(name)
        fields[name] = value if times == 1 else Unreadable(f"occurs {times} times")
    return fields


def value(row: Row, key: str) -> Any:
    """Return one field of a row as it was read.

    Raises:
        UserError: no such field; a field that occurs twice.
    """
    where, fields = row
    if key not in fields:
        raise UserError(f"{where}: no field {key!r}; {near(key, fields)}")
    found = fields[key]
    if isinstance(found, Unreadable):
        raise UserError(f"{where}: field {key!r} {found.reason}")
    return found


def text(row: Row, key: str) -> str:
    """Return one field of a row as text, without white space around it.

    Raises:
        UserError: the field is missing, empty or no text; names file, line and the fields there are.
    """
    words = written(row, key)
    if not words:
        raise UserError(f"{row[0]}: field {key!r} is empty")
    return words


def written(row: Row, key: str) -> str:
    """Return one field of a row as text, "" where it is empty: null, NaN, or white space.

    Numbers are written as Python writes them (2, 0.5), truth values as JSON does, dates in ISO 8601.

    Raises:
        UserError: the field is missing, or it is a list, an object, bytes, an infinite number, half a character.
    """
    found = value(row, key)
    if isinstance(found, str):
        words = found.strip()
        broken = "" if words.isascii() else _broken(words)
        broken = "a NUL character" if "\0" in words else broken
        if broken:
            raise UserError(f"{row[0]}: field {key!r} holds {broken}: no text")
        return words
    if is_missing(found):
        return ""
    scalar = _scalar(found)
    if scalar is None:
        raise UserError(f"{row[0]}: field {key!r} is {_kind(found)}, not one text")
    return scalar


def is_missing(found: Any) -> bool:
    """Return whether a value stands for none: null, NaN, pandas' NaT and NA."""
    return found is None or (isinstance(found, float) and math.isnan(found)) or type(found).__name__ in _MISSING


_MISSING = ("NaTType", "NAType")


def _scalar(found: Any) -> str | None:
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int):
        return str(found)
    if isinstance(found, float):
        return str(found) if math.isfinite(found) else None
    if isinstance(found, Decimal):
        return format(found, "f") if found.is_finite() else None
    if isinstance(found, datetime.datetime):
        return found.isoformat(sep=" ")
    if isinstance(found, datetime.date | datetime.time):
        return found.isoformat()
    return None


def _kind(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"an object with {', '.join(map(repr, list(found)[:4]))}" if found else "an empty object"
    if isinstance(found, bytes):
        return f"binary ({len(found)} bytes)"
    if isinstance(found, list | tuple):
        kinds = {_ITEMS.get(type(item).__name__, "values") for item in found}
        return f"a list of {len(found)} {kinds.pop() if len(kinds) == 1 else 'values'}"
    if isinstance(found, float | Decimal):
        return "an infinite number"
    return f"a value of type {type(found).__name__}"


_ITEMS = {"str": "texts", "dict": "objects", "int": "numbers", "float": "numbers"}


def _broken(words: str) -> str:
    try:
        words.encode()
        return ""
    except UnicodeEncodeError as error:
        return f"half a surrogate pair (\\u{ord(words[error.start]):04x})"
