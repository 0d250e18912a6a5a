"""What runs inside the sandbox's namespaces before the program does: its own root, its limits, no privileges.

Run as a script by `sandbox`, in new mount, network, process, IPC and host-name namespaces, with the program on the
standard input. The new root is a small file system in memory that holds the system's libraries and Python, read-only,
and a folder /program; nothing else of the machine can be named. Standard library alone, since it runs by itself.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Any

RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH = 2
NO_NEW_PRIVS, DROP_BOUNDING = 38, 24
NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)


def main(root: str, seconds: str, megabytes: str, python: str, *folders: str) -> None:
    """Set up and become the program.

    Args:
        root: an empty folder.
        seconds: of processor time.
        megabytes: of memory, of each process; a file may have a 64th.
        python: the interpreter, in one of the folders.
        folders: what the program may read.
    """
    program = sys.stdin.buffer.read()
    size = int(megabytes) << 20
    build(root, folders, size // 64)
    with open("/program/main.py", "wb") as file:
        file.write(program)
    os.chmod("/program", 0o777)
    limits = {
        resource.RLIMIT_CPU: int(seconds), resource.RLIMIT_AS: size, resource.RLIMIT_FSIZE: size // 64,
        resource.RLIMIT_NPROC: 64, resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CORE: 0,
    }  # fmt: skip
    drop_privileges()
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/program", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.execve(python, [python, "-I", "-S", "/program/main.py"], environment)


def build(root: str, folders: tuple[str, ...], size: int) -> None:
    """Make a root of its own and enter it; the old one is gone afterwards."""
    mount(None, "/", None, REC | PRIVATE)
    mount("tmpfs", root, "tmpfs", NOSUID | NODEV, f"size={size},mode=755")
    for folder in folders:
        place = root + folder
        if os.path.islink(folder):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.symlink(os.readlink(folder), place)
        elif os.path.isdir(folder):
            os.makedirs(place, exist_ok=True)
            mount(folder, place, None, BIND)
            mount(None, place, None, BIND | REMOUNT | RDONLY | NOSUID | NODEV)
    os.mkdir(f"{root}/program")
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", DETACH)
    os.chdir("/program")


def drop_privileges() -> None:
    """Become nobody, where that user can be had, without any capability and without a way to gain one."""
    for number in range(64):
        LIBC.prctl(DROP_BOUNDING, number, 0, 0, 0)  # numbers that the kernel does not know fail
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:
        pass  # in a user namespace there is only one user: ours, whose capabilities end with the next program
    call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount a file system or a folder: the system call."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind, options)]
    call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


def call(name: str, *arguments: Any) -> None:
    """Call a function of the C library.

    Raises:
        OSError: it failed.
    """
    if LIBC[name](*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
