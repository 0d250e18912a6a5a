"""Rows of a benchmark's test set: a file, or a dataset of the hub."""

from __future__ import annotations

from pathlib import Path

from lorax.errors import UserError
from lorax.tasks.readers import Rows, looks_local, read, read_hub


def test_rows(where: str, key: str, subset: str | None = None) -> Rows:
    """Return the rows that are tested on.

    Args:
        where: a file, or a hub id; there, the split `test`, else `validation`.
        key: the configuration's key that names it, for messages.
        subset: configuration name of a hub dataset.

    Raises:
        UserError: no such file or dataset, or it has neither split.
    """
    file = Path(where).expanduser()
    if file.is_file():
        return read(file)
    if file.is_dir() or looks_local(where):
        raise UserError(f"{key}={where}: no such file; a file or a hub id is needed")
    splits = read_hub(where, subset)
    for split in ("test", "validation"):
        if split in splits:
            return splits[split]
    raise UserError(f"{key}={where}: has no split test or validation")


def first_rows(rows: Rows, most: int | None) -> Rows:
    """Return the first rows in the order of the file, as papers take them; all where there is no limit."""
    return rows if most is None else Rows(rows.rows[:most], [*rows.remarks, f"the first {most:,} rows"])
