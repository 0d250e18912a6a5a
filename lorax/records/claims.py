"""Locks of runs: who waits says for whom, and a lock that nobody may ever release is not waited for for ever.

The kernel ends a lock with its process, also across machines where the file system keeps locks for all of them (NFS 4,
Lustre and GPFS with flock). Where it keeps none, a file stands for a lock: its holder touches it while it works, and
who has seen it untouched for `STALE_AFTER` seconds of its own clock takes it over. Such a file system must show a new
file and a changed time to all machines within that time; it need not have one clock.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from lorax.errors import UserError
from lorax.records.writing import PART, temporary_prefix

SAY_AFTER = 3.0
"""Seconds of waiting after which a line says who holds the lock."""
STALE_AFTER = 600.0
"""Seconds after which a file that stands for a lock, and that its holder no longer touches, is taken over."""


class Claimed(UserError):
    """Another process has this run."""


def acquire(path: Path, timeout: float = -1) -> BaseFileLock:
    """Take a lock; where another process holds it, wait, and after a few seconds say for whom.

    Args:
        path: of the lock.
        timeout: seconds to wait; -1: for as long as it takes; 0: not at all.

    Raises:
        Claimed: the time is over.
    """
    lock = lock_of(path)
    first = SAY_AFTER if timeout < 0 else min(SAY_AFTER, timeout)
    begin = time.monotonic()
    try:
        lock.acquire(timeout=first)
    except Timeout:
        left = -1 if timeout < 0 else timeout - (time.monotonic() - begin)
        if timeout >= 0 and left <= 0:
            raise Claimed(f"{said_holder(path)} has this run ({path})") from None
        hint = f"it is taken over if silent for {STALE_AFTER:.0f} s" if isinstance(lock, SoftFileLease) else path
        print(f"lorax: waiting for {said_holder(path)}, which has this run ({hint})", file=sys.stderr, flush=True)
        try:
            lock.acquire(timeout=left)
        except Timeout:
            raise Claimed(f"{said_holder(path)} has this run ({path})") from None
    _sign(path, lock)
    return lock


def try_acquire(path: Path) -> BaseFileLock | None:
    """Take a lock if nobody holds it; else return None."""
    try:
        lock = lock_of(path)
    except OSError:
        return None
    return lock if is_free(lock) else None


def is_free(lock: BaseFileLock) -> bool:
    """Take a lock if nobody holds it, and say whether. A file that stands for one ages while one object looks at it."""
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, RuntimeError):  # RuntimeError: this process holds it itself
        return False
    return True


def lock_of(path: Path) -> BaseFileLock:
    """Return a lock of the kernel's, or where the file system has none, one that stays alive by being touched."""
    if has_kernel_locks(path.parent):
        return FileLock(path)
    return SoftFileLease(path, lease_duration=STALE_AFTER)


@cache
def has_kernel_locks(folder: Path) -> bool:
    """Return whether files in a folder can be locked; asked once a process, by trying."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=temporary_prefix(".lock"), suffix=PART) as place:
        lock = FileLock(Path(place) / "lock", fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except OSError:
            return False
        lock.release()
        return True


def holder(path: Path) -> tuple[int, str] | None:
    """Return process number and machine that a lock file names, or None."""
    with suppress(OSError, ValueError):
        owner = SoftFileLease(path).owner
        if owner is not None:
            return owner.pid, owner.hostname
        pid, machine = path.read_text(encoding="utf-8").splitlines()[:2]
        return int(pid), machine
    return None


def said_holder(path: Path) -> str:
    """Return who holds a lock, in words."""
    held = holder(path)
    return "another process" if held is None else f"process {held[0]} on {held[1]}"


def _sign(path: Path, lock: BaseFileLock) -> None:
    """Write into a held lock's file who holds it, as locks that are files do themselves."""
    if isinstance(lock, SoftFileLease):
        return
    with suppress(OSError):
        handle = os.open(path, os.O_WRONLY)
        try:
            os.ftruncate(handle, os.write(handle, f"{os.getpid()}\n{socket.gethostname()}\n".encode()))
        finally:
            os.close(handle)
