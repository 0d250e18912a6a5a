"""One guarded reader of JSON: size, encoding, depth, duplicate keys and numbers are checked before anybody uses it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorax.errors import UserError

MOST_BYTES = 256 * 2**20
"""Of one file, unpacked; a record has about 0.1 MB."""
DEEPEST = 100
"""Nested lists and mappings; a record has about six. Below Python's own limit, so that no later reader meets that."""


class Damaged(UserError):
    """A file does not hold what it should: the line names the file and what is wrong with it."""


def read_json(path: str | Path, *, nan: bool = False, most: int = MOST_BYTES) -> Any:
    """Return the value in a JSON file.

    Args:
        path: the file.
        nan: accept NaN and Infinity, which Python writes and JSON does not have.
        most: more bytes than these are refused.

    Raises:
        Damaged: in one line: it cannot be read, is too large, no UTF-8, no JSON, nested too deeply, has a key twice,
            or a number or a text that no JSON has.
    """
    return parse_json(read_bytes(path, most), path, nan=nan)


def read_bytes(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Return a file's bytes, those of a `.gz` file unpacked; refuse more than `most` of them.

    Raises:
        Damaged: it cannot be read, or is too large.
    """
    place = Path(path)
    try:
        with gzip.open(place, "rb") if place.suffix == ".gz" else place.open("rb") as file:
            raw = bytearray()
            while len(raw) <= most and (part := file.read(2**20)):
                raw += part
    except IsADirectoryError:
        raise Damaged(f"{path}: a folder, where a file is expected") from None
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(raw) > most:
        raise Damaged(f"{path}: larger than {most / 2**20:.0f} MB")
    return bytes(raw)


def parse_json(raw: bytes | str, where: str | Path, *, nan: bool = False) -> Any:
    """Return the value of a JSON text; see `read_json`.

    Args:
        raw: the text, or its bytes in UTF-8, with or without a byte order mark.
        where: what the line of an error begins with.
        nan: accept NaN and Infinity.

    Examples:
        >>> parse_json('{"a": [1, 2.5]}', "here")
        {'a': [1, 2.5]}
    """
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
        value = _lenient.decode(text) if nan else _strict.decode(text)
    except UnicodeDecodeError as error:
        raise Damaged(f"{where}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise Damaged(f"{where}: not JSON ({error.msg}, line {error.lineno})") from None
    except RecursionError:
        raise Damaged(f"{where}: nested too deeply") from None
    except ValueError as error:  # a key twice, NaN, an integer of thousands of digits
        raise Damaged(f"{where}: {str(error).split(';')[0]}") from None
    if _deeper(value, DEEPEST):
        raise Damaged(f"{where}: nested more than {DEEPEST} deep")
    if "\\u" in text and _has_lone_surrogate(value):
        raise Damaged(f"{where}: holds half a character (a lone surrogate)")
    return value


def read_lines(path: str | Path, *, nan: bool = False, most: int = MOST_BYTES) -> list[dict[str, Any]]:
    """Return the mappings in a file of JSON lines, packed or not.

    Raises:
        Damaged: as `read_json`; a line that is no mapping.
    """
    lines = [line for line in read_bytes(path, most).split(b"\n") if line.strip()]
    rows = parse_json(b"[" + b",\n".join(lines) + b"]", path, nan=nan)
    if len(rows) != len(lines) or not all(isinstance(row, dict) for row in rows):
        raise Damaged(f"{path}: a line of it is no JSON object")
    return rows


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)[:60]!r} twice")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


_strict = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant)
_lenient = json.JSONDecoder(object_pairs_hook=_pairs)


def _deeper(value: Any, most: int) -> bool:
    """Return whether lists and mappings are nested more than `most` deep; without recursion."""
    level = [value]
    for _ in range(most + 1):
        level = [item for one in level if isinstance(one, dict | list) for item in _children(one)]
        if not level:
            return False
    return True


def _children(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
    items = value.values() if isinstance(value, dict) else value
    return (item for item in items if isinstance(item, dict | list))


def _has_lone_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
