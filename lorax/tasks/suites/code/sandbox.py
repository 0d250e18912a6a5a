"""A sandbox for programs that a model wrote: no network, none of the machine's files, limits of time and memory.

Made of Linux namespaces by util-linux' `unshare`: an own network without any interface, own processes (all end with
the first), an own root with Python and the system's libraries, read-only (`_inside`). Where there is none, nothing is
run: `check` says so in one line.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lorax.errors import UserError

_INSIDE = Path(__file__).with_name("_inside.py")
_NAMESPACES = ("--net", "--pid", "--fork", "--kill-child", "--mount", "--ipc", "--uts")
_SHOWN = 4000
"""Bytes of a program's messages that are read, from their end."""


@dataclass(frozen=True)
class Limits:
    """What a program may take."""

    seconds: int = 10
    """Of time on the clock."""
    megabytes: int = 1024
    """Of memory, of each of at most 64 processes; all its files together, and what it prints, may have a 64th."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    """It came to its end."""
    reason: str
    """Why it did not, as Python's last line says it; "" if it did."""


def run(program: str, limits: Limits | None = None) -> Outcome:
    """Run a Python program in a sandbox of its own.

    It has passed if its last line is reached: what it prints or returns, `sys.exit(0)` included, does not count.

    Args:
        program: source text; the standard library is there, no other package.
        limits: None: the defaults.

    Raises:
        UserError: there is no sandbox.
    """
    check()
    return _run(program, limits or Limits())


@cache
def check() -> None:
    """Refuse to go on where there is no sandbox.

    Raises:
        UserError: says what is missing.
    """
    if shutil.which("unshare") is None:
        reason = "unshare (util-linux) is not installed"
    else:
        reason = _run("import math", Limits()).reason
    if reason:
        raise UserError(f"programs of a model are run in a sandbox only, and there is none here: {reason[:150]}")


def _run(program: str, limits: Limits) -> Outcome:
    word = secrets.token_hex(16)  # printed at the end: the program cannot know it beforehand
    source = f"{program}\n\nimport os as _os\n_os.write(1, b'\\n{word}')\n_os._exit(0)\n"
    python = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    folders = dict.fromkeys(("/usr", "/bin", "/lib", "/lib64", os.path.realpath(sys.base_prefix)))
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    with tempfile.TemporaryDirectory(prefix="lorax-sandbox-") as root, tempfile.TemporaryFile() as said:
        words = [root, str(limits.seconds + 1), str(limits.megabytes), python, *_outer(folders)]
        command = ["unshare", *user, *_NAMESPACES, python, "-I", "-S", str(_INSIDE), *words]
        with tempfile.TemporaryFile() as given:
            given.write(source.encode(errors="replace"))
            given.seek(0)
            process = subprocess.Popen(
                command, stdin=given, stdout=said, stderr=said, env={"PATH": os.environ.get("PATH", "")},
                start_new_session=True, cwd="/",
            )  # fmt: skip
        try:
            code = process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"took more than {limits.seconds} s")
        finally:
            _end(process)
        size = said.seek(0, os.SEEK_END)
        said.seek(max(0, size - _SHOWN))
        told = said.read().decode(errors="replace")
    if code == 0 and word in told:
        return Outcome(True, "")
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return Outcome(False, lines[-1][:200] if lines and code else f"ended early with code {code}")


def _outer(folders: dict[str, None]) -> list[str]:
    """Return the folders that no other one of them holds."""
    return [
        folder for folder in folders
        if not any(folder != other and folder.startswith(f"{other}/") for other in folders)
    ]  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the first process of the namespace: the kernel ends all others before `unshare` is told, and it ends then."""
    if process.poll() is None:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            process.wait(5 if children else 0)
        except (OSError, subprocess.TimeoutExpired):
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)  # `unshare` itself, if it has not come so far; its child goes with it
    except ProcessLookupError:
        pass
    process.wait()
