"""The folder of records: what is written reads back, by name and id; digests follow the bytes of a file."""

from __future__ import annotations

import os

import pytest

from lorax.errors import UserError
from lorax.records import RunRecord, Store, check_writable, digest_file, run_id
from lorax.records.store import Unwritable


def record(seed=0, status="finished", name="sweep"):
    return RunRecord(run_id({"seed": seed}), name, status, {}, {"seed": seed})


A, C = (record(seed).run_id for seed in (0, 1))


def test_records_and_their_items_read_back(tmp_path):
    store = Store(tmp_path)
    items = [{"split": "test", "id": "1", "score": 1.0, "completion": "π"}]
    assert store.write(record(), items) == store.path("sweep", A)
    store.write_all([(record(1), None)])
    store.write_all([(record(2, name="of/a folder"), None)])
    assert [one.run_id for one in store.read("sweep")] == sorted([A, C])
    assert store.names() == ["of/a folder", "sweep"]
    assert store.items(record()) == items and store.items(record(1)) == []
    assert store.get("sweep", "none") is None


def test_a_failed_run_is_kept_but_not_over(tmp_path):
    store = Store(tmp_path)
    store.write(record(status="failed"))
    assert store.get("sweep", A) is not None and store.finished("sweep", A) is None
    store.write(record(status="diverged"))
    assert store.finished("sweep", A) is not None, "a diverged run is a result"


def test_an_unknown_name_names_its_near_misses(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(UserError, match="no records called 'sweep' in"):
        store.read("sweep")
    store.write(record())
    with pytest.raises(UserError, match="did you mean 'sweep'"):
        store.read("swep")


def test_the_digest_of_a_file_follows_its_bytes(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"one")
    first = digest_file(path)
    path.write_bytes(b"two!")
    assert digest_file(path) != first
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 0))
    assert digest_file(path) == first


def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path):
    check_writable("results_dir", tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", ""):
        with pytest.raises(Unwritable, match="results_dir="):
            check_writable("results_dir", place)
