"""Where rows come from: a file, a folder, a file for each split, or the hub."""

from __future__ import annotations

from pathlib import Path

from lorax.errors import UserError
from lorax.tasks.readers.datasets import is_saved, read_hub, read_saved
from lorax.tasks.readers.files import folder_splits, read, read_all
from lorax.tasks.readers.opening import KINDS, suffix_of
from lorax.tasks.readers.rows import Format, Rows


def read_splits(
    path: str,
    subset: str | None = None,
    files: dict[str, str | None] | None = None,
    format: Format | None = None,
    revision: str | None = None,
) -> dict[str, Rows]:
    """Read every split there is.

    Args:
        path: a file (all its rows become `train`), a folder with train.*, validation.*, test.* or one
            that `save_to_disk` wrote, or a hub id.
        subset: configuration name of a hub dataset.
        files: a file each for train, validation and test; they take precedence over what `path` holds.
        format: what the files do not say themselves.
        revision: branch, tag or commit of a hub dataset.

    Returns:
        {split: rows}; only splits that exist.

    Raises:
        UserError: missing path, no train split, unreadable row (with file and line).
    """
    format = format or Format()
    given = {split: existing(file, f"task.{split}") for split, file in (files or {}).items() if file}
    rows = {split: read(file, format) for split, file in given.items()}
    if path:
        rows = _read_path(path, subset, format, set(given), revision) | rows
    if "train" not in rows:
        raise UserError(f"task.path={path}: no training rows; give a file, a folder with train.jsonl, or a hub id")
    return rows


def _read_path(path: str, subset: str | None, format: Format, given: set[str], revision: str | None) -> dict[str, Rows]:
    """Read what `task.path` stands for, without the splits that have files of their own."""
    local = Path(path).expanduser()
    _check_names(f"task.path={path}", local)
    if revision is not None and local.exists():
        raise UserError(
            f"task.revision={revision}: task.path={path} lies here; only a dataset on the hub has revisions"
        )
    if local.is_file():
        return {} if "train" in given else {"train": read(local, format)}
    if local.is_dir() and is_saved(local):
        return read_saved(local, format)
    if local.is_dir():
        files = folder_splits(local)
        if "train" not in {*files, *given}:
            raise UserError(f"task.path={path}: no training rows; {_contents(local)}")
        return {split: read_all(paths, format) for split, paths in files.items() if split not in given}
    if looks_local(path):
        raise UserError(f"task.path={path}: no such file or folder")
    return read_hub(path, subset, format, revision)


def _contents(folder: Path) -> str:
    """Return what a folder holds, and the way to say which file is which."""
    names = sorted(item.name for item in folder.iterdir())
    tables = [name for name in names if suffix_of(Path(name)) in KINDS]
    saved = [item.name for item in folder.iterdir() if item.is_dir() and is_saved(item)]
    if saved:
        return f"save_to_disk wrote {', '.join(saved[:3])} in it: task.path={folder / saved[0]}"
    listed = ", ".join((tables or names)[:5]) or "nothing"
    return f"it holds {listed}, none called train.*; say which file is which: task.train=<file> task.test=<file>"


def existing(path: str, key: str) -> Path:
    """Return the path of a file that must be there."""
    file = Path(path).expanduser()
    _check_names(f"{key}={path}", file)
    if file.is_dir():
        raise UserError(f"{key}={path}: a folder, not a file; task.path takes folders")
    if not file.is_file():
        raise UserError(f"{key}={path}: no such file")
    return file


def _check_names(shown: str, path: Path) -> None:
    """Refuse a name that is longer than file systems take: asking for such a file is an error of its own."""
    if any(len(part.encode(errors="replace")) > 255 for part in path.parts):
        raise UserError(f"{shown[:60]}...: a name of more than 255 bytes")


def looks_local(path: str) -> bool:
    """Return whether a path that does not exist was meant as one: it cannot be a hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or suffix_of(Path(path)) in KINDS
