import csv
import json
import socket
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from wandb.proto.wandb_internal_pb2 import Record

from lorax.errors import UserError
from lorax.training import tracking
from lorax.training.tracking import Tracker, effective_mode, reachable

CONFIG = {"rank": 8, "init": {"name": "pissa"}, "zeta": None}


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc
    monkeypatch.setattr(tracking, "_warned", set())


def fill(tracker):
    for step in range(3):
        tracker.log({"step": step, "loss": 1.0 / (step + 1), "lr": 1e-3, "grad_norm": float("nan")})
    tracker.table("items", [{"id": "a", "score": 1}, {"id": "b", "score": 0}])
    tracker.summary({"score": 0.5, "step_ms": 3.0})
    tracker.finish()
    tracker.finish()


def records(path):
    """Read a .wandb file: W&B's protobuf records in LevelDB's log format, 32 KiB blocks after 7 bytes."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # a block's tail too short for a header is padding
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # FULL or LAST
            yield Record.FromString(parts)
            parts = b""


def test_plain_files_without_wandb(tmp_path):
    tracker = Tracker(tmp_path, CONFIG, mode="none")
    fill(tracker)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2] and rows[0]["grad_norm"] is None
    assert json.loads((tmp_path / "summary.json").read_text()) == {"score": 0.5, "step_ms": 3.0, "status": "finished"}
    assert list(csv.DictReader((tmp_path / "items.csv").open()))[1] == {"id": "b", "score": "0"}
    assert not (tmp_path / "wandb").exists()


def test_the_offline_run_reads_back_as_it_was_logged(tmp_path):
    one = Tracker(tmp_path / "one", CONFIG, name="pissa r8", group="sweep", tags=["t"])
    two = Tracker(tmp_path / "two", {"rank": 4})  # runs of a pack are open at once
    fill(one)
    fill(two)
    [path] = (tmp_path / "one").glob("wandb/offline-run-*/*.wandb")
    written = list(records(path))
    [run] = [record.run for record in written if record.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.run_group, run.display_name, run.project) == ("sweep", "pissa r8", "lorax")
    assert config["rank"] == 8 and config["init"] == {"name": "pissa"}
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in written
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["train/loss"] for row in history if "train/loss" in row] == [1.0, 0.5, 1 / 3]
    assert any(key.startswith("items") for row in history for key in row)
    summary = {
        item.key: json.loads(item.value_json)
        for record in written if record.WhichOneof("record_type") == "summary" for item in record.summary.update
    }  # fmt: skip
    assert summary["score"] == 0.5 and summary["status"] == "finished"
    assert len(list((tmp_path / "two").glob("wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("key", [None, "0" * 40])
def test_online_without_a_way_out_falls_back_at_once_with_one_warning(tmp_path, monkeypatch, key):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        if key:
            monkeypatch.setenv("WANDB_API_KEY", key)
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trackers = [Tracker(tmp_path / name, CONFIG, mode="online") for name in "ab"]
        assert time.perf_counter() - start < 15
    ours = [str(warning.message) for warning in caught if "W&B online" in str(warning.message)]
    assert len(ours) == 1 and "logging offline" in ours[0]
    for tracker in trackers:
        assert tracker.mode == "offline"
        tracker.finish()


def test_a_host_that_does_not_answer_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        start = time.perf_counter()
        assert not reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.3)
        assert time.perf_counter() - start < 5
    assert not reachable("http://no.such.host.invalid", seconds=0.3)
    with ThreadingHTTPServer(("127.0.0.1", 0), QuietHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert reachable(f"http://127.0.0.1:{server.server_port}/missing")
        server.shutdown()


class QuietHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


def test_the_environment_decides_between_modes_but_never_opts_in():
    assert effective_mode("offline", {"WANDB_MODE": "online"}) == "online"
    assert effective_mode("online", {"WANDB_MODE": "dryrun"}) == "offline"
    assert effective_mode("none", {"WANDB_MODE": "online"}) == "none"
    assert effective_mode("online", {"WANDB_MODE": "disabled"}) == "none"
    with pytest.raises(UserError, match="track=offlin: did you mean 'offline'"):
        effective_mode("offlin", {})


def test_trouble_inside_wandb_stops_no_run(tmp_path, monkeypatch):
    tracker = Tracker(tmp_path, CONFIG)

    def broken(*_, **__):
        raise RuntimeError("service gone")

    monkeypatch.setattr(tracker.run, "log", broken)
    with pytest.warns(UserWarning, match="service gone"):
        fill(tracker)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
