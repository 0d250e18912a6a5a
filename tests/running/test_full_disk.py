"""A place that cannot be written: refused before training where it can be foreseen, survived after it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from lorax.adapters.handle import Adapters
from lorax.records import Store, Unwritable, check_space
from lorax.training.tracking import Tracker


def records():
    store = Store("results")
    return store.read("small") if store.folder("small").is_dir() else []


def test_an_adapter_that_cannot_be_saved_loses_no_trained_run(lorax, capsys, monkeypatch):
    def full(self, path, **more):
        Path(path).mkdir(parents=True)
        (Path(path) / ".adapter.part").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(Adapters, "save", full)
        with pytest.warns(UserWarning, match="save=saved: .*No space left.*the run is kept"):
            assert lorax("base=false", "save=saved") == 0
    [record] = records()
    assert record.status == "finished" and "No space left" in record.provenance["save_error"]
    assert not [path for path in Path("saved").rglob("*") if path.is_file()]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("words, key", [(["save=saved"], "save=saved"), (["train.checkpoint_every=2"], "results_dir=")])
def test_too_little_space_is_one_line_before_anything_is_trained(lorax, capsys, monkeypatch, words, key):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=10**9, used=0, free=100))
    assert lorax("base=false", *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and key in lines[0] and "0.0 MB are free" in lines[0] and not records()


def test_space_is_asked_of_the_place_that_will_be_written(tmp_path):
    check_space("save", tmp_path / "new" / "folder", 1)
    with pytest.raises(Unwritable, match="save=.*needs 1,000,000,000,000.0 MB"):
        check_space("save", tmp_path / "new", 10**18)


def test_without_tracking_nothing_is_written_outside_the_results(lorax):
    assert lorax("base=false", "track=none") == 0
    assert [path.name for path in Path().iterdir()] == ["results"]


def test_a_log_that_cannot_be_written_ends_and_the_run_goes_on(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="the log ends here, the run goes on"):
        tracker = Tracker(tmp_path / "file" / "below", {}, mode="none")
    tracker = Tracker(tmp_path / "log", {}, mode="none")
    tracker.log({"step": 0, "loss": 1.0})
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "log").touch()
    with pytest.warns(UserWarning, match="the log ends here"):
        tracker.summary({"score": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.log({"step": 1, "loss": 1.0})
        tracker.table("items", [{"id": 1}])
        tracker.finish()
        tracker.finish()
