"""One file's rows, by its kind; and a folder's files, split by split."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lorax.errors import UserError
from lorax.tasks.readers.catalogues import read_mo, read_po
from lorax.tasks.readers.columnar import read_arrow, read_parquet
from lorax.tasks.readers.delimited import read_delimited
from lorax.tasks.readers.json_files import read_json, read_jsonl
from lorax.tasks.readers.opening import KINDS, kind_of, stem_of, suffix_of
from lorax.tasks.readers.rows import Format, Rows

ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Split -> how files and datasets call it."""
_READERS: dict[str, Callable[[Path, Format], Rows]] = {
    "jsonl": lambda path, format: read_jsonl(path), "json": lambda path, format: read_json(path),
    "csv": read_delimited, "tsv": read_delimited, "parquet": read_parquet, "arrow": read_arrow,
    "po": lambda path, format: read_po(path), "mo": lambda path, format: read_mo(path),
}  # fmt: skip
_SHARD = re.compile(r"(?P<stem>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})")


def read(path: Path, format: Format | None = None) -> Rows:
    """Return a file's rows.

    Raises:
        UserError: unknown suffix; a row that cannot be read, with its line; no rows at all.
    """
    format, kind = format or Format(), kind_of(path)
    if format.columns and kind not in ("csv", "tsv"):
        raise UserError(f"{path}: task.columns names the columns of CSV and TSV files; this one has names of its own")
    rows = _READERS[kind](path, format)
    if not len(rows):
        raise UserError(f"{path}: no rows; the file is empty")
    return rows


def read_all(paths: Sequence[Path], format: Format | None = None) -> Rows:
    """Return the rows of several files, one after the other."""
    parts = [read(path, format) for path in paths]
    return Rows([row for part in parts for row in part.rows], [remark for part in parts for remark in part.remarks])


def folder_splits(folder: Path) -> dict[str, list[Path]]:
    """Return {split: files} of a folder: `train.jsonl`, the shards `train-00000-of-00002.parquet`, or a folder `train`.

    They may lie in a folder `data`, as on the hub. A folder with files of one set of shards, under any name, is train,
    and so is one of message catalogues, whose names stand for parts of a program.

    Raises:
        UserError: two sources for one split; a shard is missing.
    """
    for place in (folder, folder / "data"):
        files: dict[str, list[Path]] = {}
        for split, stems in ALIASES.items():
            found = {name: paths for name, paths in _sources(place).items() if name.partition("|")[0].lower() in stems}
            if len(found) > 1:
                both = " and ".join(paths[0].name for paths in list(found.values())[:2])
                raise UserError(f"task.path={folder}: holds {both}; say which with task.{split}=<file>")
            for paths in found.values():
                files[split] = _complete(paths)
        if files:
            return files
    sources = _sources(folder)
    if len(sources) == 1 and len(paths := next(iter(sources.values()))) > 1:
        return {"train": _complete(paths)}
    files_there = [path for paths in sources.values() for path in paths]
    catalogues = [path for path in files_there if suffix_of(path) in (".po", ".mo")]
    others = [path for path in files_there if suffix_of(path) not in (".po", ".mo", ".txt")]  # a licence, a note
    return {"train": catalogues} if catalogues and not others else {}


def _sources(folder: Path) -> dict[str, list[Path]]:
    """Return {name|kind: files} of a folder: a file or a set of shards each, and the files of inner folders."""
    sources: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_file() and suffix_of(path) in KINDS:
            shard = _SHARD.fullmatch(stem_of(path))
            name = shard["stem"] if shard else stem_of(path)
            sources.setdefault(f"{name}|{path.name[len(stem_of(path)) :]}", []).append(path)
        elif path.is_dir():
            inner = [file for file in sorted(path.iterdir()) if file.is_file() and suffix_of(file) in KINDS]
            if inner:
                sources[f"{path.name}|/"] = inner
    return sources


def _complete(paths: list[Path]) -> list[Path]:
    """Return shards, all there."""
    counts = {int(shard["count"]) for path in paths if (shard := _SHARD.fullmatch(stem_of(path)))}
    if counts and counts != {len(paths)}:
        raise UserError(f"{paths[0].parent}: {len(paths)} of {max(counts)} shards like {paths[0].name}")
    return paths
