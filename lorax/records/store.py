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
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorax.errors import UserError, near
from lorax.records import chain, claims, journal
from lorax.records.guarded_json import Damaged, read_lines
from lorax.records.integrity import ITEMS, read_believed, read_record
from lorax.records.record import RunRecord
from lorax.records.writing import (
    Unwritable,
    check_writable,
    remove,
    write_atomic,
    write_together,
    writing,
)

__all__ = ["Store", "Unwritable", "check_name", "check_writable", "digest_file", "write_atomic", "write_together"]

_SPACE = 2**20
"""Bytes that must be free before a run starts; a record with its items is smaller."""
_LONGEST = 200
"""Characters of one part of a name: it is a folder, and `<name>.rescored.csv` a file."""


def check_name(name: str, key: str = "name") -> str:
    """Return a name of records that stays inside the results folder; refuse any other.

    Raises:
        UserError: in one line: an absolute path, `.`, `..`, a character that no name has, or a part that is too long.
    """
    shown = repr(name) if len(name) <= 60 else repr(name[:57] + "...")
    if not re.fullmatch(r"[\w .-]+(/[\w .-]+)*", name):
        raise UserError(f"{key}={shown}: letters, digits, '.', '_', '-' and '/' only")
    for part in name.split("/"):
        if not part.strip(". "):
            raise UserError(f"{key}={shown}: {part!r} is no name of a folder; give it a letter or a digit")
        if len(part.encode()) > _LONGEST:
            raise UserError(f"{key}={shown}: longer than {_LONGEST} bytes")
    return name


class Store:
    """Records under one results folder, safe for many processes at once."""

    def __init__(self, results_dir: str | Path):
        self.root = Path(results_dir)
        self._left_out: dict[str, dict[str, str]] = {}

    def folder(self, name: str) -> Path:
        """Return the folder of the records called `name`.

        Raises:
            UserError: the name would leave the results folder (`check_name`).
        """
        return self.root / "records" / check_name(name)

    def path(self, name: str, run_id: str) -> Path:
        """Return where the record of one run lies."""
        return self.folder(name) / f"{run_id}.json"

    def state(self, name: str, run_id: str) -> Path:
        """Return the folder for a run's lock and checkpoints, which is removed when the run is over."""
        return self.root / "state" / check_name(name) / run_id

    def names(self) -> list[str]:
        """Return every name that has records, sorted."""
        base = self.root / "records"
        return sorted({str(path.parent.relative_to(base)) for path in base.rglob("*.json")}) if base.is_dir() else []

    def write(self, record: RunRecord, items: Iterable[dict[str, Any]] | None = None) -> Path:
        """Write items first, then the record: a record that exists has its items."""
        self.write_all([(record, items)])
        return self.path(record.name, record.run_id)

    def write_all(self, runs: Iterable[tuple[RunRecord, Iterable[dict[str, Any]] | None]]) -> None:
        """Write the records of one pack; a kill at any moment leaves none of them, or all once one is claimed again."""
        files: list[tuple[str, journal.Files]] = []
        name, written_records = "", []
        for record, items in runs:
            path, name = self.path(record.name, record.run_id), record.name
            written: journal.Files = []
            if items is not None:
                lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
                written.append((path.with_suffix(ITEMS), gzip.compress(lines.encode(), mtime=0)))
                digest = hashlib.sha256(written[0][1]).hexdigest()
            else:  # those that lie there, if any, stay
                kept = path.with_suffix(ITEMS)
                digest = hashlib.sha256(kept.read_bytes()).hexdigest() if kept.is_file() else ""
            written_records.append(replace(record, items_digest=digest))
            written.append((path, written_records[-1].to_json().encode()))
            files.append((record.run_id, written))
        chained = chain.chain_path(self.root, check_name(name)) if name else None
        if chained is None or not chained.is_file():
            self._write(name, files)
            return
        with chain.chain_lock(self.root, name):
            self._write(name, files)
            chain.enter(chained, written_records)

    def _write(self, name: str, files: list[tuple[str, journal.Files]]) -> None:
        if len(files) > 1:
            journal.write_pack(self.root / "state" / name, files)
        else:
            write_together(pair for _, written in files for pair in written)

    def catch_up(self, name: str) -> int:
        """Enter into the chain of a study what killed processes recorded and did not enter; return how many.

        Nothing where the name has no chain.
        """
        chained = chain.chain_path(self.root, check_name(name))
        if not chained.is_file():
            return 0
        with chain.chain_lock(self.root, name):
            return chain.catch_up(chained, self.folder(name))

    def chain_head(self, name: str) -> str | None:
        """Return the digest of the last line of a study's chain, which its next run names; None without a chain."""
        return chain.head(chain.chain_path(self.root, check_name(name)))

    def get(self, name: str, run_id: str) -> RunRecord | None:
        """Return the record of one run, or None.

        Raises:
            UserError: the file is no record of this run, or was changed; the line says how to go on.
        """
        path = self.path(name, run_id)
        if not path.exists():
            return None
        try:
            record = read_record(path)
            if record.run_id != run_id:
                raise Damaged(f"{path}: holds run {record.run_id[:40]}")
        except Damaged as error:
            raise Damaged(f"{error}; move the file away to run this again") from None
        return record

    def finished(self, name: str, run_id: str) -> RunRecord | None:
        """Return the record if the run is over (finished or diverged); failed runs are tried again."""
        record = self.get(name, run_id)
        return record if record is not None and record.status != "failed" else None

    def read(self, name: str) -> list[RunRecord]:
        """Return all records called `name` that may be believed, in order of run id; warn of each other file.

        Raises:
            UserError: there is no such folder.
        """
        folder = self.folder(name)
        if not folder.is_dir():
            known = self.names()
            raise UserError(f"no records called {name!r} in {self.root}" + (f"; {near(name, known)}" if known else ""))
        records, left_out = [], {}
        for path in sorted(folder.glob("*.json")):
            try:
                records.append(read_believed(path, name))
            except Damaged as error:
                left_out[path.name] = str(error).removeprefix(f"{path}: ")
        for file, reason in left_out.items():
            warnings.warn(f"left out: {folder / file}: {reason}", stacklevel=2)
        self._left_out[name] = left_out
        return records

    def left_out(self, name: str) -> dict[str, str]:
        """Return file name -> why it was left out, for what lay among the records when they were last read."""
        if name not in self._left_out:
            self.read(name)
        return self._left_out[name]

    def items(self, record: RunRecord) -> list[dict[str, Any]]:
        """Return the evaluated items of a run: split, id, score, and what the task adds.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path(record.name, record.run_id).with_suffix(ITEMS)
        return read_lines(path, nan=True) if path.is_file() else []

    @contextmanager
    def claim(self, name: str, run_id: str, timeout: float = -1) -> Iterator[RunRecord | None]:
        """Reserve a run for this process; a second process with the same run waits here, then gets the record.

        The lock ends with its process, so a killed run can be claimed again, and its half-written files
        are removed. The claim of a run that is over leaves no file.

        Args:
            name: the records' name.
            run_id: the run.
            timeout: seconds to wait for another process; -1: for as long as it takes; 0: not at all.

        Yields:
            The record, if the run is over already; None: do the work.

        Raises:
            Claimed: the time is over, and another process still has the run.
            Unwritable: the folder is read-only, or has no space for a record; raised before any work is done.
            UserError: the run's place holds something that is no record of it.
        """
        path = self.lock_path(name, run_id)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            held = claims.acquire(path, timeout)
        over = True  # a place that holds no record of this run is no work for anybody
        try:
            self._finish_packs(name, run_id)
            record = self.finished(name, run_id)
            over = record is not None
            self._clear(name, run_id, over)
            yield record
            over = self.finished(name, run_id) is not None
        except UserError:  # refused: nothing was begun, and nothing stays
            over = True
            raise
        finally:
            if over:  # while it is held: who still waits for the removed file asks again for the path
                remove(path)
            held.release()

    @contextmanager
    def claiming(self, name: str) -> Iterator[None]:
        """Let one process at a time claim several runs: who comes second finds all of them taken, or none."""
        path = self.root / "state" / check_name(name) / "claiming.lock"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            held = claims.acquire(path)
        try:
            yield
        finally:
            remove(path)  # before it is free: who still waits for the removed file asks again for the path
            held.release()

    def sweep(self, name: str) -> None:
        """Remove what killed processes left of runs called `name`: once a process, as it looks at every such run.

        These are temporary files whose writers are dead, records of packs that were still to be renamed, and locks and
        checkpoints of runs that are over. What another process works on is left alone.
        """
        folder = self.root / "state" / check_name(name)
        key = str(folder.absolute())
        if key in _swept or not folder.is_dir():
            return
        _swept.add(key)
        self._finish_packs(name, "")
        for run in sorted({path.name.removesuffix(".lock") for path in folder.iterdir() if _is_state(path)}):
            if self._is_over(name, run) and (held := claims.try_acquire(self.lock_path(name, run))) is not None:
                remove(self.state(name, run))
                remove(self.lock_path(name, run))
                held.release()

    def lock_path(self, name: str, run_id: str) -> Path:
        """Return where the lock of a run lies while a process has it."""
        return Path(f"{self.state(name, run_id)}.lock")

    def _is_over(self, name: str, run_id: str) -> bool:
        try:
            return self.finished(name, run_id) is not None
        except UserError:
            return False

    def _finish_packs(self, name: str, run_id: str) -> None:
        """Write the records of a killed pack that holds `run_id` ("": of every such pack)."""
        folder = self.root / "state" / check_name(name)

        def free(run: str) -> bool:
            held = claims.try_acquire(self.lock_path(name, run))
            if held is not None:
                remove(self.lock_path(name, run))
                held.release()
            return held is not None

        journal.finish_packs(folder, lambda path: self.folder(name) / path.name, run_id, free)

    def _clear(self, name: str, run_id: str, over: bool) -> None:
        """Remove what a killed process left of a run; if it is not over, make sure that a record can be written."""
        for left in self.folder(name).glob(f".{run_id}.*"):
            remove(left)
        if over:
            self.forget_state(name, run_id)
            return
        for left in self.state(name, run_id).glob(".*"):
            remove(left)
        with writing(self.folder(name)):
            self.folder(name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder(name)) as file:
                file.write(bytes(_SPACE))
                file.flush()
                os.fsync(file.fileno())

    def forget_state(self, name: str, run_id: str) -> None:
        """Remove the checkpoints of a run that is over."""
        shutil.rmtree(self.state(name, run_id), ignore_errors=True)


_swept: set[str] = set()
"""Folders of states that this process has swept."""


def _is_state(path: Path) -> bool:
    """Return whether a file or folder of `state/<name>` is the lock or the folder of a run."""
    return re.fullmatch(r"[0-9a-f]{16}(\.lock)?", path.name) is not None


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
