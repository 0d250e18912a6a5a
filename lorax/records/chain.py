"""The chain of a study: its design, then every record as it finished, each line naming the one before.

    <results_dir>/studies/<name>.chain.jsonl      one JSON object a line, only ever appended to

A line holds the SHA-256 of the line before it, so that a line which is changed, left out or put in between no longer
fits the next one. A record's line is written while the record is, under one lock. Where a kill falls between the two,
`catch_up` enters the record at the study's next start, and says that it did.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorax.records import claims
from lorax.records.guarded_json import Damaged, parse_json, read_bytes
from lorax.records.integrity import read_record
from lorax.records.record import RunRecord, canonical, digest_of
from lorax.records.writing import remove, writing

KINDS = ("design", "start", "anchor", "record")
"""design: the first line. start: a later command, where code or machine are others than before. anchor: a commit of
the user's repository that holds the registration. record: a run that is over, or has failed."""


@dataclass(frozen=True)
class Entry:
    """One line."""

    number: int
    """From 1."""
    digest: str
    """SHA-256 of the line."""
    fits: bool
    """Whether it names the line before."""
    facts: Mapping[str, Any]
    """kind, at, and what that kind holds; empty where the line is no JSON object."""

    @property
    def kind(self) -> str:
        """One of `KINDS`, or whatever the line says."""
        return str(self.facts.get("kind"))

    @property
    def at(self) -> str:
        """When it was written, by the clock of the machine that wrote it."""
        return str(self.facts.get("at") or "")


def chain_path(root: Path, name: str) -> Path:
    """Return where the chain of the records called `name` lies, if they have one."""
    return root / "studies" / f"{name}.chain.jsonl"


def read_chain(path: Path) -> list[Entry]:
    """Return the lines of a chain; nothing where there is none. What does not fit is said, not refused."""
    return entries(read_bytes(path)) if path.is_file() else []


def entries(raw: bytes) -> list[Entry]:
    """Return the lines of a chain's content. A last line without its end was never whole and does not count."""
    found: list[Entry] = []
    for number, line in enumerate(raw.split(b"\n")[:-1], start=1):
        facts: Any = None
        with suppress(Damaged):
            facts = parse_json(line, "chain")
        facts = facts if isinstance(facts, dict) else {}
        previous = found[-1].digest if found else ""
        found.append(Entry(number, _sha(line), facts.get("previous") == previous, facts))
    return found


def head(path: Path) -> str | None:
    """Return the digest of the last line; None where there is no chain."""
    return _sha(_last_line(path)) if path.is_file() else None


@contextmanager
def chain_lock(root: Path, name: str) -> Iterator[None]:
    """Keep other processes from the chain of `name`; not to be taken twice by one process. Leaves no file."""
    path = root / "state" / name / "chain.lock"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = claims.acquire(path)
    try:
        yield
    finally:
        remove(path)  # before it is free: who still waits for the removed file asks again for the path
        lock.release()


def append(path: Path, facts: Sequence[Mapping[str, Any]]) -> None:
    """Add lines at the end; the caller holds the lock.

    Args:
        path: of the chain; made if it is not there.
        facts: for each line its kind and what it holds; the time and the digest of the line before are added.

    Raises:
        Unwritable: the place is full or read-only.
    """
    if not facts:
        return
    at = datetime.now(UTC).isoformat(timespec="seconds")
    lines, previous = [], _sha(line) if (line := _last_line(path)) else ""
    for each in facts:
        lines.append(canonical({**each, "at": each.get("at", at), "previous": previous}).encode())
        previous = _sha(lines[-1])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(_whole(path))  # the rest of a line whose writer was killed
            file.write(b"".join(line + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


def enter(path: Path, records: Iterable[RunRecord], late: bool = False) -> None:
    """Add a line for each record; the caller holds the lock.

    Args:
        path: of the chain.
        records: as they were written.
        late: whether they were found on the disk, rather than written just now.
    """
    append(path, [_facts(record) | ({"late": True} if late else {}) for record in records])


def catch_up(path: Path, folder: Path) -> int:
    """Enter the records that lie on the disk and not in the chain; the caller holds the lock.

    A record that is there and was changed since is not entered again: `audit` is to see it.

    Args:
        path: of the chain.
        folder: of the records.

    Returns:
        How many were entered.
    """
    status = {str(entry.facts.get("run")): entry.facts.get("status") for entry in read_chain(path)}
    missing = []
    for file in sorted(folder.glob("*.json")):
        if status.get(file.stem, "failed") != "failed":
            continue
        with suppress(Damaged):
            record = read_record(file)
            if file.stem == record.run_id and (file.stem not in status or record.status != "failed"):
                missing.append(record)
    enter(path, sorted(missing, key=lambda record: str(record.provenance.get("finished"))), late=True)
    return len(missing)


def _facts(record: RunRecord) -> dict[str, Any]:
    """Return what the chain says of a record: enough to know, once it is gone, what it was."""
    score = record.score("test")
    return {
        "kind": "record", "run": record.run_id, "record": digest_of(record), "status": record.status,
        "label": record.label, "tag": record.config.get("tag"), "seed": record.config.get("seed"),
        "test": score if score is not None and math.isfinite(score) else None,
        "finished": record.provenance.get("finished"),
    }  # fmt: skip


_STEP = 2**16


def _last_line(path: Path) -> bytes:
    """Return the last whole line, without its end; empty where there is none."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        end, tail = _whole(path), b""
        start = max(0, end - 1)
        while start > 0 and b"\n" not in tail:
            start = max(0, start - _STEP)
            file.seek(start)
            tail = file.read(end - 1 - start)
    return tail.rpartition(b"\n")[2]


def _whole(path: Path) -> int:
    """Return how many bytes of a file are whole lines."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _STEP)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
            end = start
    return 0


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
