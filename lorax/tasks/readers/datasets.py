"""Datasets of the package `datasets`: from the hub, or a folder that `save_to_disk` wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorax.errors import UserError, hub_reason
from lorax.tasks.readers.files import ALIASES
from lorax.tasks.readers.rows import UNREAD, Format, Rows


def read_hub(
    path: str,
    subset: str | None,
    format: Format | None = None,
    revision: str | None = None,
    splits: Mapping[str, Sequence[str]] = ALIASES,
) -> dict[str, Rows]:
    """Read a dataset from the hub (or from its local cache).

    Args:
        path: its id.
        subset: name of its configuration.
        format: the fields that are used.
        revision: branch, tag or commit; None: the main branch.
        splits: split -> how the dataset may call it; of these the first that is there is read.

    Returns:
        {split: rows}, each with the id and the commit.

    Raises:
        UserError: `datasets` is not installed; no such dataset or revision, or it cannot be reached or may not be read.
    """
    datasets = _package(path, "a hub dataset")
    at = "" if revision is None else f" task.revision={revision}"
    try:
        loaded = datasets.load_dataset(path, subset, revision=revision)
    except Exception as error:
        raise UserError(
            f"task.path={path}{at}: no such file or folder, and not from the hub: {hub_reason(error)}"
        ) from error
    read, commit = _splits(loaded, path, format or Format(), splits), _commit(loaded)
    for rows in read.values():
        rows.hub = {"hub": path} | ({} if commit is None else {"commit": commit})
    return read


def _commit(loaded: Any) -> str | None:
    """Return the commit of a dataset: its files in the cache lie in a folder that is named after it."""
    folders = {Path(file["filename"]).parent.name for split in loaded.values() for file in split.cache_files}
    return next((name for name in sorted(folders) if re.fullmatch("[0-9a-f]{40}", name)), None)


def is_saved(folder: Path) -> bool:
    """Return whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def read_saved(folder: Path, format: Format) -> dict[str, Rows]:
    """Read a folder that `save_to_disk` wrote; a dataset without splits is `train`.

    Raises:
        UserError: `datasets` is not installed; a file of the folder is missing or damaged.
    """
    datasets = _package(str(folder), "a folder that save_to_disk wrote")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise UserError(f"task.path={folder}: {_line(error)}") from error
    return _splits(loaded if hasattr(loaded, "keys") else {"train": loaded}, str(folder), format)


def _package(path: str, what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"task.path={path}: {what} needs the package datasets: pip install datasets") from None
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    return datasets


def _splits(loaded: Any, path: str, format: Format, wanted: Mapping[str, Sequence[str]] = ALIASES) -> dict[str, Rows]:
    splits = {}
    for split, stems in wanted.items():
        stem = next((stem for stem in stems if stem in loaded), None)
        if stem is not None:
            rows = enumerate(_named(loaded[stem], format))
            splits[split] = Rows([(f"{path} {stem}, row {index}", fields) for index, fields in rows])
    if not splits:
        raise UserError(f"task.path={path}: has the splits {', '.join(map(str, loaded))}; train is needed")
    return splits


def _named(dataset: Any, format: Format) -> Iterator[dict[str, Any]]:
    """Yield rows, class numbers as class names; columns that are not asked for are not read."""
    names = list(dataset.features)
    used = [name for name in names if format.used is None or name in format.used]
    rest = dict.fromkeys(names, UNREAD)
    if not used:
        yield from (dict(rest) for _ in range(len(dataset)))
        return
    classes = {key: dataset.features[key] for key in used if hasattr(dataset.features[key], "int2str")}
    inner: dict[str, Any] = {key: getattr(dataset.features[key], "feature", None) for key in used}
    lists = {key: column for key, column in inner.items() if hasattr(column, "int2str")}
    for row in dataset.select_columns(used):
        named = {key: column.int2str(row[key]) for key, column in classes.items() if _is_class(row[key])}
        named |= {key: [column.int2str(number) for number in row[key]] for key, column in lists.items() if row[key]}
        yield {**rest, **row, **named}


def _is_class(number: Any) -> bool:
    return isinstance(number, int) and number >= 0  # -1 stands for a label that is kept secret


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
