"""Locks of runs: who waits says for whom, and a lock that nobody may ever release is not waited for for ever."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from lorax.errors import UserError

SAY_AFTER = 3.0
"""Seconds of waiting after which a line says who holds the lock."""
GIVE_UP_ON_ANOTHER_MACHINE = 24 * 3600.0
"""Seconds of waiting for a lock that no kernel ends with its process: a file that another machine left."""


def acquire(path: Path, timeout: float = -1) -> BaseFileLock:
    """Take a lock; where another process holds it, wait, and after a few seconds say for whom.

    The kernel ends a lock with its process. Where a file system has no such locks, a file stands for one; whether its
    process on another machine still lives cannot be asked, so that such a wait ends.

    Args:
        path: of the lock.
        timeout: seconds to wait; -1: for as long as it takes.

    Raises:
        Timeout: the time is over.
        UserError: another machine's lock stayed for a day; the line says what to do.
    """
    lock = FileLock(path)
    first = SAY_AFTER if timeout < 0 else min(SAY_AFTER, timeout)
    begin = time.monotonic()
    try:
        lock.acquire(timeout=first)
    except Timeout:
        if 0 <= timeout <= first:
            raise
        held = holder(path)
        elsewhere = isinstance(lock, SoftFileLock) and held is not None and held[1] != socket.gethostname()
        words = "another process" if held is None else f"process {held[0]} on {held[1]}"
        hint = f"; if it is gone, remove {path}" if elsewhere else f" ({path})"
        print(f"lorax: waiting for {words}, which has this run{hint}", file=sys.stderr, flush=True)
        longest = GIVE_UP_ON_ANOTHER_MACHINE if elsewhere and timeout < 0 else timeout
        left = -1 if longest < 0 else max(0.0, longest - (time.monotonic() - begin))
        try:
            lock.acquire(timeout=left)
        except Timeout:
            if elsewhere and timeout < 0:
                raise UserError(
                    f"{path}: {words} has held this run for a day; if it is gone, remove the file"
                ) from None
            raise
    _sign(path, lock)
    return lock


def try_acquire(path: Path) -> BaseFileLock | None:
    """Take a lock if nobody holds it; else return None."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, RuntimeError):  # RuntimeError: this process holds it itself
        return None
    return lock


def holder(path: Path) -> tuple[int, str] | None:
    """Return process number and machine that a lock file names, or None."""
    with suppress(OSError, ValueError):
        pid, machine = path.read_text(encoding="utf-8").splitlines()[:2]
        return int(pid), machine
    return None


def _sign(path: Path, lock: BaseFileLock) -> None:
    """Write into a held lock's file who holds it, as locks that are files do themselves."""
    if isinstance(lock, SoftFileLock):
        return
    with suppress(OSError):
        handle = os.open(path, os.O_WRONLY)
        try:
            os.ftruncate(handle, os.write(handle, f"{os.getpid()}\n{socket.gethostname()}\n".encode()))
        finally:
            os.close(handle)
