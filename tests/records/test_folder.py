"""A folder appears whole or not at all."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from lorax.errors import UserError
from lorax.records.folder import staged


def everything(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    host = socket.gethostname()
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    left = [f".lorax-run.{host}.{pid}.abc", f".lorax-other.{host}.{pid}.abc", f".lorax-run.elsewhere.{pid}.abc"]
    left += [f".lorax-run.{host}.{os.getppid()}.abc", "mine"]
    for name in left:
        (tmp_path / name).mkdir()
    with staged(tmp_path / "run") as folder:
        (folder / "file").write_text("x")
    assert sorted(os.listdir(tmp_path)) == sorted([*left[1:], "run"]) and os.listdir(tmp_path / "run") == ["file"]
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "run"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path / "run") == ["file"]


def test_files_that_a_new_content_replaces_go_only_when_it_is_there(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("model-1.safetensors", "model.safetensors", "notes.txt"):
        (tmp_path / "a" / name).write_text("old")
    with pytest.raises(UserError), staged(tmp_path / "a", replaces=["model*"]) as folder:
        raise OSError(errno.ENOSPC, "full")
    assert sorted(os.listdir(tmp_path / "a")) == ["model-1.safetensors", "model.safetensors", "notes.txt"]
    with staged(tmp_path / "a", replaces=["model*"]) as folder:
        (folder / "model.safetensors").write_text("new")
        (folder / "below").mkdir()
        (folder / "below" / "x").write_text("new")
    assert everything(tmp_path / "a") == {
        "model.safetensors": b"new", "notes.txt": b"old", "below": False, "below/x": b"new",
    }  # fmt: skip
