"""Message catalogues of gettext, PO and MO, through polib: a row for each translated message. Torch-free."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

from lorax.errors import UserError
from lorax.tasks.readers.opening import opened, whole
from lorax.tasks.readers.rows import Rows


def read_po(path: Path) -> Rows:
    """Return the messages of a PO file: source, target and context ("" where it has none).

    Raises:
        UserError: not in UTF-8, or no PO file; names the line.
    """
    import polib

    words = whole(path)
    try:
        entries = polib.pofile(words, encoding="utf-8") if words.strip() else []
    except (OSError, UnicodeError, ValueError, IndexError) as error:
        found = str(error).strip().splitlines()[0].removeprefix("Syntax error in po file ")
        raise UserError(f"{path}: no PO file: {found[:120]}") from None
    return _rows([(f"{path}, line {entry.linenum}", entry) for entry in entries], path)


def read_mo(path: Path) -> Rows:
    """Return the messages of a compiled catalogue, as `read_po`.

    Raises:
        UserError: no MO file, or cut short.
    """
    import polib

    with opened(path) as stream:
        raw = stream.read()
    try:
        if len(raw) < 4:
            raise ValueError("cut short")
        entries = list(polib.mofile(raw))
    except (OSError, UnicodeError, ValueError, LookupError, struct.error, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: no MO file, or cut short ({str(error)[:80]})") from None
    return _rows([(f"{path}, message {number}", entry) for number, entry in enumerate(entries, 1)], path)


def _rows(entries: list[tuple[str, Any]], path: Path) -> Rows:
    """Return translated messages; says how many of which kind were left out."""
    rows: Rows = Rows()
    left: Counter[str] = Counter()
    for where, entry in entries:
        fields = {"source": entry.msgid, "target": entry.msgstr, "context": entry.msgctxt or ""}
        if (why := _unusable(entry)) is None:
            rows.rows.append((where, fields))
        else:
            left[why] += 1
    if left:
        counts = ", ".join(f"{count:,} {why}" for why, count in sorted(left.items()))
        rows.remarks.append(f"{path.name}: left out messages: {counts}")
    return rows


def _unusable(entry: Any) -> str | None:
    """Return why a message is no pair of texts, or None; a compiled catalogue holds neither fuzzy nor obsolete ones."""
    import polib

    if isinstance(entry, polib.POEntry) and entry.obsolete:
        return "obsolete"
    if entry.msgid_plural:
        return "with plural forms"
    if isinstance(entry, polib.POEntry) and entry.fuzzy:
        return "fuzzy"
    return None if entry.msgid.strip() and entry.msgstr.strip() else "untranslated"
