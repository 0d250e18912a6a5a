"""Folders that appear whole: written beside their place under another name, then moved there."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from lorax.records.store import Unwritable

_PREFIX = ".lorax-"


@contextmanager
def staged(path: str | Path, last: Sequence[str] = (), replaces: Sequence[str] = ()) -> Iterator[Path]:
    """Give a temporary folder; what is written into it moves to `path` when the block ends without an error.

    A new folder appears by one rename. Into one that is there the files move one after the other, those
    named in `last` at the end. After an error nothing of the block is left, and older files are as they were;
    what a killed process left is removed by the next one that writes to the same place.

    Args:
        path: the folder; its parents are made if missing.
        last: file names that move after all others, in this order.
        replaces: patterns of file names that go from the folder where they are not written anew.

    Raises:
        Unwritable: the place is full or read-only, or is no folder; names it and the reason.
    """
    target = Path(path).absolute()
    made: list[Path] = []
    temporary: Path | None = None
    try:
        made = _make(target.parent)
        _sweep(target)
        owner = f"{socket.gethostname()}.{os.getpid()}."
        temporary = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{target.name}.{owner}", dir=target.parent))
        yield temporary
        _move(temporary, target, last, replaces)
    except (OSError, SafetensorError) as error:
        raise Unwritable(f"cannot write {path}: {_reason(error)}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:  # those that are still empty
            with suppress(OSError):
                folder.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; return the new ones, innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
    return missing


def _move(temporary: Path, target: Path, last: Sequence[str], replaces: Sequence[str]) -> None:
    files = sorted(file.relative_to(temporary) for file in temporary.rglob("*") if file.is_file())
    for file in files:
        (temporary / file).chmod(0o644)
        with (temporary / file).open("rb") as opened:
            os.fsync(opened.fileno())
    temporary.chmod(0o755)
    if not target.exists():
        os.rename(temporary, target)
        return
    if not target.is_dir():
        raise NotADirectoryError(f"{target} is a file, not a folder")
    stale = {left for pattern in replaces for left in target.glob(pattern)} - {target / file for file in files}
    for file in sorted(files, key=lambda file: last.index(str(file)) + 1 if str(file) in last else 0):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / file, target / file)
    for left in stale:
        left.unlink()


def _sweep(target: Path) -> None:
    """Remove what processes of this machine left that were killed while they wrote to the same place."""
    start = f"{_PREFIX}{target.name}.{socket.gethostname()}."
    for left in target.parent.glob(f"{_PREFIX}*"):
        owner = left.name.removeprefix(start).partition(".")[0]
        if left.name.startswith(start) and owner.isdigit() and not _runs(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:200]
