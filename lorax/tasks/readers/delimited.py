"""CSV and TSV: which character separates the fields, the header, and every row under it."""

from __future__ import annotations

from pathlib import Path

from lorax.errors import UserError, near
from lorax.tasks.readers.opening import suffix_of, whole
from lorax.tasks.readers.quoting import Split, split_table
from lorax.tasks.readers.rows import Format, Rows, named

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_delimited(path: Path, format: Format) -> Rows:
    """Return the rows under a table's header.

    In a `.tsv` or `.txt` tabs separate; in a `.csv` the first of comma, semicolon, tab and bar with which the
    header has several names and every row as many fields. See `quoting` for what a `"` is.

    Raises:
        UserError: a row with another number of fields than the header, by its line; nothing but a header.
    """
    content = whole(path)
    if content.startswith("sep=") and content[4:6].rstrip("\r\n") in DELIMITERS:  # what Excel writes for itself
        content = content[5:].lstrip("\r")  # a blank line is left, so that lines keep their numbers
    usual = "," if suffix_of(path) == ".csv" else "\t"
    if suffix_of(path) == ".txt" and "\t" not in content.lstrip().split("\n", 1)[0]:
        raise UserError(f"{path}: a .txt is read where tabs separate its fields, and its first line holds none")
    delimiter, split, remark = _split(content, [usual] if usual == "\t" else list(DELIMITERS), format, str(path))
    remarks = [f"{path.name}: {remark}"] if remark else []
    if delimiter != usual:
        remarks.append(f"{path.name}: fields separated by {DELIMITERS[delimiter]}")
    records = split.records
    if format.columns:
        names = list(format.columns)
        if records and [name.strip() for name in records[0].fields] == names:
            raise UserError(f"{path}, line {records[0].first}: a header, so that task.columns is not needed")
    elif records:
        names, records = [name.strip() for name in records[0].fields], records[1:]
        if format.used and not format.used & set(names):
            key = min(format.used)
            hint = f"{near(key, names)}; in a file without a header name the columns: task.columns=[...]"
            raise UserError(f"{path}, line {split.records[0].first}: the header has no {key!r}; {hint}")
    if not records:
        raise UserError(f"{path}: no rows" + (" under the header" if split.records else "; the file is empty"))
    blank = records[-1].last - records[0].first + 1 - sum(record.last - record.first + 1 for record in records)
    if blank:
        remarks.append(f"{path.name}: {blank} blank line{'s' if blank > 1 else ''}")
    return Rows([(f"{path}, line {record.first}", named(names, record.fields)) for record in records], remarks)


def _split(content: str, delimiters: list[str], format: Format, where: str) -> tuple[str, Split, str]:
    """Return the delimiter that fits, the records it gives and the remark about quotes."""
    first = content.lstrip("\r\n").split("\n", 1)[0]
    wanted = len(format.columns) - 1 if format.columns else 1
    possible = [delimiter for delimiter in delimiters if first.count(delimiter) >= wanted]
    problem: UserError | None = None
    for delimiter in possible or delimiters[:1]:
        try:
            return delimiter, *split_table(content, delimiter, format.columns, format.quotes, where)
        except UserError as error:
            problem = problem or error
    assert problem is not None
    raise problem
