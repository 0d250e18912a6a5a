"""Files that are whole or not there: staged beside their place, renamed, and swept away if their writer died."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from lorax.errors import UserError


class Unwritable(UserError):
    """A place cannot be written: the disk is full, it is read-only, or it is no folder. Older files stay whole."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
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
    with writing(f"{key}={folder}"):
        place = _existing(folder)
        sweep(place)
        with tempfile.TemporaryDirectory(dir=place, prefix=temporary_prefix(".lorax"), suffix=PART):
            pass


def check_space(key: str, folder: str | Path, needed: int) -> None:
    """Refuse a folder on whose disk fewer bytes are free than will be written.

    Raises:
        Unwritable: names the folder, what is needed and what is free.
    """
    try:
        free = shutil.disk_usage(_existing(folder)).free
    except OSError:  # a place that does not say: writing will show
        return
    if free < needed:
        raise Unwritable(f"{key}={folder}: needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free")


def _existing(folder: str | Path) -> Path:
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


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
            with writing(path):
                staged.append((_stage(Path(path), data.encode() if isinstance(data, str) else data), Path(path)))
        while staged:
            temporary, path = staged[0]
            with writing(path):
                os.replace(temporary, path)
            del staged[0]
    finally:
        for temporary, _ in staged:
            Path(temporary).unlink(missing_ok=True)


def _stage(path: Path, raw: bytes) -> str:
    """Write the content beside `path`; return the temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_once(path.parent.absolute())
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(f".{path.name[:100]}"), suffix=PART)
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


PART = ".part"
"""The end of every temporary name: `.<file>.<machine>-<pid>-<start of that process>.<random>.part`."""
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{6})-(\d+)-(\d+)\.[a-z0-9_]{8}\.part")
_OLDER = re.compile(r"\.lorax-[a-z0-9_]{8}|\..+\.(json|gz|pt|md|csv|tex|html|yaml|png|svg)\.[a-z0-9_]{8}")
"""Temporary names of earlier versions, which do not say whose they are."""
_FOREIGN_TOO_OLD = 24 * 3600
"""Seconds after which a temporary file whose writer cannot be asked for (another machine's) is taken for left over."""


def temporary_prefix(stem: str) -> str:
    """Return the beginning of a temporary name: `stem`, and which process on which machine writes it."""
    return f"{stem}.{_machine()}-{os.getpid()}-{_started(os.getpid())}."


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders directly in `folder` whose writers are dead."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                continue
            match = _TEMPORARY.fullmatch(entry.name)
            if match is not None and match[1] == _machine():
                dead = abs(_started(int(match[2])) - int(match[3])) > _CLOCK_STEP
            else:
                dead = (match is not None or _OLDER.fullmatch(entry.name) is not None) and _is_old(entry)
            if dead:
                remove(Path(entry.path))


@cache
def sweep_once(folder: Path) -> None:
    """Sweep a folder at the first file that this process writes there."""
    sweep(folder)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _is_old(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # abs: a clock that is ahead must not keep it for ever
        return abs(time.time() - entry.stat(follow_symlinks=False).st_mtime) > _FOREIGN_TOO_OLD
    return False


@cache
def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


_CLOCK_STEP = 5
"""Seconds by which the start of one and the same process may seem to move when the clock is set."""


def _started(pid: int) -> int:
    """Return when a process started, in seconds; -1 where there is none. Tells it from a later one of its number."""
    import psutil

    try:
        return int(psutil.Process(pid).create_time())
    except psutil.Error:
        return -1
