"""A place that cannot be written: one line, nothing left of it, older files as they were."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import contextmanager

import pytest
import torch

from lorax.adapters.install import find_targets, install
from lorax.adapters.load import load
from lorax.errors import UserError


@contextmanager
def small_disk(size):
    """No file may grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def everything(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def adapters(net, make, shake):
    return shake(install(model := net(), make("pissa", find_targets(model))))


WRITERS = {
    "save": lambda adapters, path: adapters.save(path, quiet=True),
    "export_peft": lambda adapters, path: adapters.export_peft(path),
    "export_merged": lambda adapters, path: adapters.export_merged(path),
}


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize("size", [0, 300, 700])
def test_a_full_disk_is_one_line_and_leaves_nothing(adapters, shake, tmp_path, how, size):
    write = WRITERS[how]
    for place in ("new", "deep/er/new"):
        with (
            small_disk(size),
            pytest.raises(UserError, match=f"cannot write .*{place}: .*(too large|No space)") as caught,
        ):
            write(adapters, tmp_path / place)
        assert "\n" not in str(caught.value) and everything(tmp_path) == {}
    write(adapters, tmp_path / "there")
    before = everything(tmp_path)
    shake(adapters)
    with small_disk(size), pytest.raises(UserError, match="cannot write"):
        write(adapters, tmp_path / "there")
    assert everything(tmp_path) == before and not adapters.merged
    write(adapters, tmp_path / "there")
    assert everything(tmp_path).keys() == before.keys() and everything(tmp_path) != before


@pytest.mark.parametrize("call", ["rename", "replace", "fsync"])
@pytest.mark.parametrize("how", WRITERS)
def test_an_error_at_the_last_call_is_one_line_too(adapters, tmp_path, monkeypatch, how, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "there").mkdir()
    for place in ("new", "there") if call == "fsync" else ("new",) if call == "rename" else ("there",):
        with monkeypatch.context() as patched, pytest.raises(UserError, match=f"cannot write .*{place}: No space left"):
            patched.setattr(os, call, full)
            WRITERS[how](adapters, tmp_path / place)
        assert everything(tmp_path) == {"there": False}


@pytest.mark.parametrize("how", WRITERS)
def test_a_file_in_the_place_of_the_folder_is_named(adapters, tmp_path, how):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(UserError, match="cannot write .*file"):
            WRITERS[how](adapters, tmp_path / place)
    assert everything(tmp_path) == {"file": b"mine"}


def test_header_and_tensors_never_disagree_unnoticed(adapters, net, shake, tmp_path, monkeypatch):
    """A kill between the two renames into a folder that is there: new tensors under the old header."""
    adapters.save(tmp_path / "a", quiet=True)
    shake(adapters)
    real, seen = os.replace, []

    def kill(source, target):
        seen.append(os.path.basename(target))
        if len(seen) == 2:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", kill)
        adapters.save(tmp_path / "a", quiet=True)
    assert seen == ["adapter.safetensors", "adapter.json"] and list(tmp_path.iterdir()) == [tmp_path / "a"]
    with pytest.raises(UserError, match="damaged"):
        load(net(), tmp_path / "a")
    adapters.save(tmp_path / "a", quiet=True)
    assert torch.equal(load(net(), tmp_path / "a").delta()["up"], adapters.delta()["up"])
