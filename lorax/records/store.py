"""The folder of records: atomic writes, claims, items beside records, digests of files.

    <results_dir>/records/<name>/<run_id>.json           the record
    <results_dir>/records/<name>/<run_id>.items.jsonl.gz one line for each evaluated item
    <results_dir>/state/<name>/<run_id>/                 locks and checkpoints of unfinished runs

Nothing here imports torch.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from lorax.errors import UserError, near
from lorax.records.record import RunRecord


class Unwritable(UserError):
    """A place cannot be written: the disk is full, it is read-only, or it is no folder. Older files stay whole."""


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Turn an error of the operating system while writing `path` into one clear line."""
    try:
        yield
    except OSError as error:
        raise Unwritable(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(key: str, folder: str | Path) -> None:
    """Refuse a folder that cannot be written; leave no file in it.

    Args:
        key: the name of the folder in the error line.
        folder: need not exist; then its nearest existing parent is tried.

    Raises:
        Unwritable: names the folder and the reason.
    """
    if not str(folder):
        raise Unwritable(f"{key}='': must name a folder")
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    with _writing(f"{key}={folder}"), tempfile.TemporaryDirectory(dir=place, prefix=_PREFIX):
        pass


_PREFIX = ".lorax-"
_SPACE = 2**20
"""Bytes that must be free before a run starts; a record with its items is smaller."""


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old or the new content whole, even if the process is killed.

    Raises:
        Unwritable: the place is full or read-only; names the path and the reason.
    """
    write_together([(path, data)])


def write_together(files: Iterable[tuple[str | Path, str | bytes]]) -> None:
    """Write several files as `write_atomic` does: first all contents under other names, then all renames.

    The renames follow the given order.

    Raises:
        Unwritable: a place is full or read-only; where a content could not be written, no file has changed.
    """
    staged: list[tuple[str, Path]] = []
    try:
        for path, data in files:
            with _writing(path):
                staged.append((_stage(Path(path), data.encode() if isinstance(data, str) else data), Path(path)))
        while staged:
            temporary, path = staged[0]
            with _writing(path):
                os.replace(temporary, path)
            del staged[0]
    finally:
        for temporary, _ in staged:
            Path(temporary).unlink(missing_ok=True)


def _stage(path: Path, raw: bytes) -> str:
    """Write the content beside `path`; return the temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


class Store:
    """Records under one results folder, safe for many processes at once."""

    def __init__(self, results_dir: str | Path):
        self.root = Path(results_dir)

    def folder(self, name: str) -> Path:
        """Return the folder of the records called `name`."""
        return self.root / "records" / name

    def path(self, name: str, run_id: str) -> Path:
        """Return where the record of one run lies."""
        return self.folder(name) / f"{run_id}.json"

    def state(self, name: str, run_id: str) -> Path:
        """Return the folder for a run's lock and checkpoints, which is removed when the run is over."""
        return self.root / "state" / name / run_id

    def names(self) -> list[str]:
        """Return every name that has records, sorted."""
        base = self.root / "records"
        return sorted({str(path.parent.relative_to(base)) for path in base.rglob("*.json")}) if base.is_dir() else []

    def write(self, record: RunRecord, items: Iterable[dict[str, Any]] | None = None) -> Path:
        """Write items first, then the record: a record that exists has its items."""
        self.write_all([(record, items)])
        return self.path(record.name, record.run_id)

    def write_all(self, runs: Iterable[tuple[RunRecord, Iterable[dict[str, Any]] | None]]) -> None:
        """Write the records of one pack: a kill before the renames leaves none of them."""
        items_first: list[tuple[Path, bytes]] = []
        records: list[tuple[Path, str]] = []
        for record, items in runs:
            path = self.path(record.name, record.run_id)
            if items is not None:
                lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
                items_first.append((path.with_suffix(".items.jsonl.gz"), gzip.compress(lines.encode(), mtime=0)))
            records.append((path, record.to_json()))
        write_together([*items_first, *records])

    def get(self, name: str, run_id: str) -> RunRecord | None:
        """Return the record of one run, or None."""
        path = self.path(name, run_id)
        return RunRecord.from_json(path.read_text(), str(path)) if path.is_file() else None

    def finished(self, name: str, run_id: str) -> RunRecord | None:
        """Return the record if the run is over (finished or diverged); failed runs are tried again."""
        record = self.get(name, run_id)
        return record if record is not None and record.status != "failed" else None

    def read(self, name: str) -> list[RunRecord]:
        """Return all records called `name`, in order of run id.

        Raises:
            UserError: there is no such folder, or a file in it is no record.
        """
        folder = self.folder(name)
        if not folder.is_dir():
            known = self.names()
            raise UserError(f"no records called {name!r} in {self.root}" + (f"; {near(name, known)}" if known else ""))
        return [RunRecord.from_json(path.read_text(), str(path)) for path in sorted(folder.glob("*.json"))]

    def items(self, record: RunRecord) -> list[dict[str, Any]]:
        """Return the evaluated items of a run: split, id, score, and what the task adds."""
        path = self.path(record.name, record.run_id).with_suffix(".items.jsonl.gz")
        if not path.is_file():
            return []
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @contextmanager
    def claim(self, name: str, run_id: str, timeout: float = -1) -> Iterator[RunRecord | None]:
        """Reserve a run for this process; a second process with the same run waits here, then gets the record.

        The lock ends with its process, so a killed run can be claimed again, and its half-written files
        are removed. The claim of a run that is over leaves no file.

        Args:
            name: the records' name.
            run_id: the run.
            timeout: seconds to wait for another process; -1: for as long as it takes.

        Yields:
            The record, if the run is over already; None: do the work.

        Raises:
            Unwritable: the folder is read-only, or has no space for a record; raised before any work is done.
        """
        path = Path(f"{self.state(name, run_id)}.lock")
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(path, timeout=timeout).acquire()
        with held:
            record = self.finished(name, run_id)
            if record is None:
                self._clear(name, run_id)
            yield record
            over = self.finished(name, run_id) is not None
        if over:  # a process that still waits for the removed file then reads the record: no two work on one run
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _clear(self, name: str, run_id: str) -> None:
        """Remove the half-written files of a killed run; make sure that a record can be written."""
        for folder in (self.folder(name), self.state(name, run_id)):
            for left in folder.glob(f".{run_id}.*" if folder == self.folder(name) else ".*"):
                left.unlink(missing_ok=True)
        with _writing(self.folder(name)):
            self.folder(name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder(name)) as file:
                file.write(bytes(_SPACE))
                file.flush()
                os.fsync(file.fileno())

    def forget_state(self, name: str, run_id: str) -> None:
        """Remove the checkpoints of a run that is over."""
        shutil.rmtree(self.state(name, run_id), ignore_errors=True)


_DIGESTS: dict[tuple[str, int, int], str] = {}


def digest_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, remembered by path, size and modification time."""
    path = Path(path).resolve()
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _DIGESTS[key]
