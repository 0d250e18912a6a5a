"""Rows of the user's own data: JSONL, JSON, CSV, TSV and parquet files, or a hub dataset. Torch-free."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorax.errors import UserError, near

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
Row = tuple[str, dict[str, Any]]
"""The place of a row (`file, line 12`) and its fields."""


def read_splits(
    path: str, subset: str | None = None, files: dict[str, str | None] | None = None
) -> dict[str, list[Row]]:
    """Read every split there is.

    Args:
        path: a file (all its rows become `train`), a folder with train.*, validation.*, test.*, or
            a hub id.
        subset: configuration name of a hub dataset.
        files: a file each for train, validation and test; they take precedence over what `path` holds.

    Returns:
        {split: rows}; only splits that exist.

    Raises:
        UserError: missing path, no train split, unreadable row (with file and line).
    """
    given = {split: file for split, file in (files or {}).items() if file}
    rows = {split: list(read(existing(file, f"task.{split}"))) for split, file in given.items()}
    if path:
        local = Path(path).expanduser()
        if local.is_file():
            rows.setdefault("train", list(read(local)))
        elif local.is_dir():
            for split, file in folder_splits(local).items():
                if split not in rows:
                    rows[split] = list(read(file))
        elif looks_local(path):
            raise UserError(f"task.path={path}: no such file or folder")
        else:
            rows = read_hub(path, subset) | rows
    if not rows.get("train"):
        raise UserError(f"task.path={path}: no training rows; give a file, a folder with train.jsonl, or a hub id")
    return rows


def existing(path: str, key: str) -> Path:
    """Return the path of a file that must be there."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}={path}: no such file")
    return file


def looks_local(path: str) -> bool:
    """Return whether a path that does not exist was meant as one: it cannot be a hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix in SUFFIXES


def folder_splits(folder: Path) -> dict[str, Path]:
    """Return {split: file} of a folder with one file per split."""
    files: dict[str, Path] = {}
    for split, stems in ALIASES.items():
        for stem in stems:
            for suffix in SUFFIXES:
                if (folder / f"{stem}{suffix}").is_file():
                    files.setdefault(split, folder / f"{stem}{suffix}")
    return files


def read(path: Path) -> Iterator[Row]:
    """Yield a file's rows.

    Raises:
        UserError: unknown suffix; a row that cannot be read, with its line.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; {near(path.suffix, SUFFIXES)}")
    try:
        yield from readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def text(row: Row, key: str) -> str:
    """Return one field of a row as text.

    Raises:
        UserError: the field is missing or empty; names file, line and the fields there are.
    """
    where, fields = row
    if key not in fields:
        raise UserError(f"{where}: no field {key!r}; {near(key, fields)}")
    value = fields[key]
    if value is None or not str(value).strip():
        raise UserError(f"{where}: field {key!r} is empty")
    return str(value).strip()


def read_hub(path: str, subset: str | None) -> dict[str, list[Row]]:
    """Read a dataset from the hub (or from its local cache).

    Raises:
        UserError: `datasets` is not installed; no such dataset, or it cannot be reached.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"task.path={path}: a hub dataset needs the package datasets: pip install datasets") from None
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(path, subset)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"task.path={path}: no such file or folder, and not from the hub: {first}") from error
    splits = {}
    for split, stems in ALIASES.items():
        stem = next((stem for stem in stems if stem in loaded), None)
        if stem is not None:
            named = _named(loaded[stem])
            splits[split] = [(f"{path} {stem}, row {index}", dict(row)) for index, row in enumerate(named)]
    return splits


def _named(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield a hub dataset's rows with class numbers turned into class names."""
    classes = {key: column for key, column in dataset.features.items() if hasattr(column, "int2str")}
    for row in dataset:
        yield row | {key: column.int2str(row[key]) for key, column in classes.items() if (row[key] or 0) >= 0}


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _object(line, where)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: not a JSON object but {type(fields).__name__}")
    return fields


def _json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: a list of objects is needed, not {type(rows).__name__}")
    for number, fields in enumerate(rows, start=1):
        if not isinstance(fields, dict):
            raise UserError(f"{path}, item {number}: not a JSON object but {type(fields).__name__}")
        yield f"{path}, item {number}", fields


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        start = 2
        try:
            for fields in reader:
                where = f"{path}, line {start}"  # where the row starts: quoted fields may span lines
                if None in fields or None in fields.values():
                    got = len(fields) - 1 + len(fields[None]) if None in fields else "fewer"
                    raise UserError(f"{where}: {got} columns where the header has {len(reader.fieldnames or ())}")
                yield where, fields
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}, line {start}: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pandas

    try:
        frame = pandas.read_parquet(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    for number, fields in enumerate(frame.to_dict("records")):
        yield f"{path}, row {number}", {str(key): None if value != value else value for key, value in fields.items()}
