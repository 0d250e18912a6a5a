"""Programs in the sandbox: right ones pass, hostile ones fail and leave nothing behind."""

import os
import uuid
from pathlib import Path

import pytest

from lorax.errors import UserError
from lorax.tasks.suites.code import sandbox

HOSTILE = {
    "endless": ("while True:\n    pass", "took more than 1 s"),
    "memory": ("x = bytearray(3 << 30)", "MemoryError"),
    "network": ("import socket\nsocket.create_connection(('1.1.1.1', 53), 2)", "unreachable"),
    "local network": ("import socket\nsocket.create_connection(('127.0.0.1', 22), 2)", "OSError"),
    "reads": ("open('/etc/hosts').read()", "No such file"),
    "writes": ("open('/usr/lorax', 'w')", "Read-only file system"),
    "large file": ("open('large', 'wb').write(b'0' * (1 << 28))", "OSError"),
    "large output": ("while True:\n    print('x' * 1000)", "x"),
    "leaves early": ("import os\nos._exit(0)", "ended early with code 0"),
    "says it is done": ("raise SystemExit(0)", "ended early with code 0"),
    "forks": ("import os\nwhile True:\n    os.fork()", ""),
    "remounts": ("import ctypes\nassert ctypes.CDLL(None).mount(None, b'/usr', None, 32 | 4096, None) == 0", "Assert"),
    "syntax": ("def f(:", "SyntaxError"),
}
QUICK = ("network", "writes", "leaves early")


def run(program, **limits):
    return sandbox.run(program, sandbox.Limits(**limits))


def processes(marker):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path] if marker.encode() in path.read_bytes() else []
        except OSError:
            continue
    return found


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in HOSTILE
])  # fmt: skip
def test_hostile_programs_fail(name):
    program, reason = HOSTILE[name]
    outcome = run(program, seconds=1 if name == "endless" else 10)
    assert not outcome.passed and reason in outcome.reason


def test_a_program_that_comes_to_its_end_passes_whatever_it_prints(monkeypatch):
    program = "import math, os\nassert math.gcd(6, 4) == 2\nopen('a', 'w').write('b')\nprint(os.listdir('/'))"
    assert run(program) == sandbox.Outcome(True, "")
    monkeypatch.setattr(os, "geteuid", lambda: 1)  # as another user than root: in a user namespace
    assert run(program).passed and not run("open('/usr/lorax', 'w')").passed


@pytest.mark.slow
def test_nothing_is_left_of_a_program_that_outlives_its_time(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(sandbox.tempfile, "tempdir", None)
    marker = f"marker-{uuid.uuid4()}"
    program = f"""
import os, sys, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        os.execv(sys.executable, [sys.executable, "-c", "while True: pass", "{marker}"])
open("left", "w").write("x")
time.sleep(60)
"""
    assert run(program, seconds=2).reason == "took more than 2 s"
    assert not processes(marker) and not list(tmp_path.iterdir())
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_without_a_sandbox_nothing_is_run_and_it_is_one_line(monkeypatch, tmp_path):
    sandbox.check.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"run in a sandbox only, and there is none here: unshare .* not installed"):
        sandbox.run("print(1)")
    broken = tmp_path / "unshare"
    broken.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match="there is none here: unshare: unshare failed: Operation not permitted"):
        sandbox.run("print(1)")
    sandbox.check.cache_clear()
