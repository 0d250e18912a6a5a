"""A pack's records reach their places all or none: first one file that holds them all, then each of them, then gone.

Without it a kill between two of their renames would leave some runs of a pack recorded, and the others would be run
again in another pack, where sums are added in another order.

    <results_dir>/state/<name>/<digest>.pack
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lorax.errors import UserError
from lorax.records.guarded_json import parse_json, read_bytes
from lorax.records.writing import write_atomic, write_together

Files = list[tuple[Path, bytes]]
"""The files of one run, in the order in which they are written: items, then the record."""
SUFFIX = ".pack"


def write_pack(folder: Path, runs: Sequence[tuple[str, Files]]) -> None:
    """Write the files of several runs so that a kill at any moment leaves all of them or none, after `finish_packs`.

    Args:
        folder: for the journal, on a place that outlives the process.
        runs: for each run its id and its files.
    """
    body = json.dumps(
        [[run, [[str(path), base64.b64encode(raw).decode()] for path, raw in files]] for run, files in runs]
    ).encode()
    digest = hashlib.sha256(body).hexdigest()
    journal = folder / f"{digest[:32]}{SUFFIX}"
    write_atomic(journal, digest.encode() + b"\n" + body)
    write_together(pair for _, files in runs for pair in files)
    journal.unlink(missing_ok=True)


def finish_packs(folder: Path, place: Callable[[Path], Path], run: str, free: Callable[[str], bool]) -> None:
    """Write what killed processes had decided to write, and remove their journals.

    Args:
        folder: of the journals.
        place: where a file of the journal belongs now (the results may have been moved).
        run: the run that the caller has claimed; its files are written now.
        free: whether another run is nobody's, so that its files may be written too.
    """
    for journal in folder.glob(f"*{SUFFIX}"):
        runs = _read(journal)
        if run not in runs and runs:
            continue
        for each, files in runs.items():
            if each == run or free(each):
                write_together((place(path), raw) for path, raw in files)
        if all(_holds(place(path), raw) for files in runs.values() for path, raw in files):
            journal.unlink(missing_ok=True)


def _holds(path: Path, raw: bytes) -> bool:
    return path.is_file() and path.read_bytes() == raw


def _read(journal: Path) -> dict[str, Files]:
    """Return run -> its files; nothing where the journal is not whole: its runs are then run again."""
    with suppress(UserError, ValueError, TypeError):
        digest, _, body = read_bytes(journal).partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() == digest:
            return {
                run: [(Path(path), base64.b64decode(text)) for path, text in files]
                for run, files in parse_json(body, journal)
            }
    return {}
