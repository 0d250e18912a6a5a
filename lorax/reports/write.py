"""The table of a name: a study's where its design is fixed, else a sweep's."""

from __future__ import annotations

from pathlib import Path

from lorax.records import Store
from lorax.reports.sweep import write_sweep
from lorax.studies.registration import frozen_path


def write_table(store: Store, name: str) -> tuple[str, list[Path]]:
    """Rebuild the tables and figures of `name` from its records.

    A name with a registered study gets the study's table, also after a single run or a grid of that name.

    Returns:
        The Markdown text, and the paths written.

    Raises:
        UserError: there are no such records, or the folder cannot be written.
    """
    if frozen_path(store.root, name).is_file():
        from lorax.reports.study import write_study  # loads matplotlib, which a sweep may not need

        return write_study(store, name)
    return write_sweep(store, name)
