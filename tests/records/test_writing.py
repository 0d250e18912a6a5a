"""Temporary files go when their writers are dead, and stay while they live."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from lorax.records import check_writable
from lorax.records.writing import PART, sweep, temporary_prefix


def dead_prefix(stem):
    """The prefix of a process that has ended."""
    code = f"from lorax.records.writing import temporary_prefix; print(temporary_prefix({stem!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_only_what_the_dead_left_is_swept(tmp_path):
    prefix, day = dead_prefix(".x.md"), 24 * 3600
    machine = prefix.split(".")[-2].split("-")[0]
    gone = [f"{prefix}abcdefgh{PART}", f"{prefix.replace('.x.md', '.lorax')}abcdefgh{PART}"]
    old = [f".x.md.000000-1-1.abcdefgh{PART}", ".x.json.abcdefgh", ".lorax-abcdefgh"]
    ahead = [".y.json.abcdefgh"]
    kept = [f"{temporary_prefix('.x.md')}abcdefgh{PART}", f".y.md.000000-1-1.abcdefgh{PART}", ".z.json.abcdefgh",
            ".gitignore", "x.md", f".x.md.{machine}{PART}", ".x.notes.old_stuff"]  # fmt: skip
    for name in [*gone, *old, *ahead, *kept]:
        if ".lorax" in name:
            (tmp_path / name).mkdir()
            (tmp_path / name / "inside").touch()
        else:
            (tmp_path / name).touch()
    for names, when in ((old, -2 * day), (ahead, 400 * day)):
        for name in names:
            os.utime(tmp_path / name, (time.time() + when,) * 2)
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("key", ["results_dir", "save"])
def test_a_check_of_a_folder_sweeps_what_a_killed_check_left(tmp_path, key):
    (tmp_path / f"{dead_prefix('.lorax')}abcdefgh{PART}").mkdir()
    check_writable(key, tmp_path / "new")
    assert not list(tmp_path.iterdir())
