"""JSON lines and JSON: objects, one a line or in one list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorax.errors import UserError
from lorax.tasks.readers.opening import decoded, opened, whole
from lorax.tasks.readers.rows import Row, Rows, Unreadable


def read_jsonl(path: Path) -> Rows:
    """Return the objects of a file with one a line; blank lines do not count.

    Raises:
        UserError: a line that is no JSON object, by its number.
    """
    with opened(path) as lines:
        return Rows(list(_lines(lines, path)))


def _lines(lines: Any, path: Path) -> Iterator[Row]:
    for number, raw in enumerate(lines, start=1):
        line = decoded(raw, str(path), number)
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(parsed(line, where, one_line=True), where)


def read_json(path: Path) -> Rows:
    """Return the objects of a list, of the one list inside an object, or of JSON lines under this suffix.

    Raises:
        UserError: not JSON, or no list of objects; names line or item.
    """
    content = whole(path)
    lines = content.strip().split("\n")
    if len(lines) > 1 and _is_object(lines[0]):
        rows = [
            (where := f"{path}, line {number}", _object(parsed(line, where, one_line=True), where))
            for number, line in enumerate(content.split("\n"), start=1)
            if line.strip()
        ]
        return Rows(rows, [f"{path.name} holds JSON lines"])
    found, remarks = parsed(content, str(path)), []
    if isinstance(found, dict):
        lists = [key for key, inner in found.items() if isinstance(inner, list)]
        if len(lists) != 1:
            raise UserError(f"{path}: a list of objects is needed, not {_object_kind(found, lists)}")
        found, remarks = found[lists[0]], [f"{path.name}: the list under {lists[0]!r}"]
    if not isinstance(found, list):
        raise UserError(f"{path}: a list of objects is needed, not {type(found).__name__}")
    places = ((f"{path}, item {number}", fields) for number, fields in enumerate(found, start=1))
    return Rows([(where, _object(fields, where)) for where, fields in places], remarks)


def parsed(words: str, where: str, one_line: bool = False) -> Any:
    """Return JSON as Python values; NaN and the infinities are floats.

    Raises:
        UserError: not JSON, nested too deeply, a whole number too long for Python.
    """
    try:
        return json.loads(words, object_pairs_hook=_fields)
    except json.JSONDecodeError as error:
        place = where if one_line else f"{where}, line {error.lineno}"
        raise UserError(f"{place}: not JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply to be read") from None
    except ValueError:
        raise UserError(f"{where}: a whole number of more than 4,300 digits; write it as text") from None


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields; of a name that occurs twice neither value counts."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        fields |= {name: Unreadable(f"occurs {n} times") for name in fields if (n := names.count(name)) > 1}
    return fields


def _object(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise UserError(f"{where}: not a JSON object but {type(found).__name__}")
    return found


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _object_kind(found: dict[str, Any], lists: list[str]) -> str:
    if lists:
        return f"an object with {len(lists)} lists ({', '.join(lists[:4])}): write each into a file of its own"
    if found and all(isinstance(inner, dict) for inner in found.values()):
        return "an object of objects; pandas writes a list with to_json(orient='records', lines=True)"
    return "one object"
