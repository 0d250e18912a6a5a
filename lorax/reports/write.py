"""The table of a name: a study's where its design is fixed, else a sweep's plain one."""

from __future__ import annotations

from pathlib import Path

from lorax.records import Store
from lorax.studies.registration import frozen_path


def write_table(store: Store, name: str) -> tuple[str, list[Path]]:
    """Rebuild the tables and figures of `name` from its records.

    A run or a grid that takes a study's name leaves the study's table a study's table.

    Returns:
        The Markdown text, and the paths written.

    Raises:
        UserError: there are no such records, or the folder cannot be written.
    """
    if frozen_path(store.root, name).is_file():
        from lorax.reports.study import write_study

        return write_study(store, name)
    from lorax.reports.sweep import write_plain

    return write_plain(store, name)
