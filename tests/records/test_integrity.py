"""A record is believed where id, scores, items and digests agree; what disagrees is left out with a word."""

from __future__ import annotations

import errno
import gzip
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from lorax.errors import UserError
from lorax.records import Damaged, RunRecord, Store, claims, journal, run_id
from lorax.records.fields import finished_at, one_per_seed
from lorax.records.integrity import ITEMS
from lorax.records.record import content_digest
from lorax.records.staleness import fresh
from lorax.tables import main

ITEM = {"split": "test", "score": 1.0, "loss": 0.5, "tolerant": 1.0}


def record(seed=0, **more):
    identity = {"init": {"name": "lora", "rank": 8}, "seed": seed, "lr": 1e-3}
    scores = {"test": {"score": 0.5, "loss": 1.0, "tolerant": 0.75, "n": 4}}
    fields = {"task": {"name": "toy"}, "scores": scores, "costs": {"trainable": 8}} | more
    curve = [{"step": step, "loss": 1.0 / (1 + step + seed)} for step in range(3)]
    return RunRecord(run_id(identity), "sweep", "finished", identity, identity, curve=curve, **fields)


def items(n=4):
    return [
        ITEM | {"id": str(i), "score": float(i < n / 2), "tolerant": float(i < 3), "loss": 1.0, "completion": "x"}
        for i in range(n)
    ]


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    for seed in (0, 1):
        store.write(record(seed), items())
    return store


def as_older(store, one):
    """Write a record as it was before records held digests."""
    data = json.loads(store.path("sweep", one.run_id).read_text())
    del data["digest"], data["items_digest"]
    store.path("sweep", one.run_id).write_text(json.dumps(data))


def edit(store, one, change, older):
    if older:
        as_older(store, one)
    path = store.path("sweep", one.run_id)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_items(store, one, change):
    path = store.path("sweep", one.run_id).with_suffix(ITEMS)
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(rows)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


EDITS = {
    "score": lambda data: data["scores"]["test"].update(score=0.99),
    "loss": lambda data: data["scores"]["test"].update(loss=0.1),
    "count": lambda data: data["scores"]["test"].update(n=4000),
    "another split": lambda data: data["scores"].update(validation={"score": 1.0, "n": 3}),
    "identity": lambda data: data["identity"].update(lr=2e-3),
    "seed": lambda data: data["identity"].update(seed=7),
    "run id": lambda data: data.update(run_id="0" * 16),
    "name": lambda data: data.update(name="other"),
    "score as text": lambda data: data["scores"]["test"].update(score="0.99"),
    "scores as list": lambda data: data.update(scores=[1]),
    "curve as number": lambda data: data.update(curve=3),
    "curve of texts": lambda data: data["curve"][0].update(loss="low"),
    "costs": lambda data: data["costs"].update(trainable="many"),
    "no name": lambda data: data.pop("name"),
    "task's name": lambda data: data["task"].update(name=["toy"]),
    "newer": lambda data: data.update(schema=99),
    "schema as text": lambda data: data.update(schema="1"),
}


@pytest.mark.parametrize("older", [False, True], ids=["with digest", "older"])
@pytest.mark.parametrize("what", EDITS)
def test_an_edited_record_is_left_out_with_a_word_and_verify_names_it(store, capsys, what, older):
    one, other = record(0), record(1)
    edit(store, one, EDITS[what], older)
    file = store.path("sweep", one.run_id)
    with pytest.warns(UserWarning, match=f"left out: {file}: "):
        assert [kept.run_id for kept in store.read("sweep")] == [other.run_id]
    assert main(["verify=sweep", f"results_dir={store.root}"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and f"record: records/sweep/{file.name}: " in out[0] and "1 findings" in out[1]


@pytest.mark.parametrize("key", ["curve", "costs", "label", "provenance"])
def test_with_a_digest_any_edit_shows(store, key):
    new = {"curve": [], "costs": {}, "label": "best", "provenance": {"commit": "x"}}[key]
    edit(store, record(0), lambda data: data.update({key: new}), older=False)
    assert "its content does not have its digest" in Store(store.root).left_out("sweep")[f"{record(0).run_id}.json"]


@pytest.mark.parametrize("older", [False, True], ids=["with digest", "older"])
def test_edited_items_show(store, older):
    if older:
        as_older(store, record(0))
    edit_items(store, record(0), lambda rows: [row.update(score=1.0) for row in rows])
    [reason] = Store(store.root).left_out("sweep").values()
    assert reason == ("its test score is 0.5, its items say 1.0" if older else
                      "its items are not those that it was written with")  # fmt: skip


def test_missing_and_damaged_items(store):
    path = store.path("sweep", record(0).run_id).with_suffix(ITEMS)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    assert "its items are not those" in Store(store.root).left_out("sweep")[f"{record(0).run_id}.json"]
    path.unlink()
    assert Store(store.root).left_out("sweep") == {f"{record(0).run_id}.json": "its items are missing"}
    as_older(store, record(1))
    store.path("sweep", record(1).run_id).with_suffix(ITEMS).write_bytes(b"no gzip")
    assert "its items cannot be read" in Store(store.root).left_out("sweep")[f"{record(1).run_id}.json"]
    with pytest.raises(UserError, match="cannot be read"):
        store.items(record(1))


FOREIGN = {
    "text": b"hello", "bytes": b"\xff\xfe", "list": b"[1]", "deep": b"[" * 10**5, "notes": b'{"note": 1}',
    "empty": b"", "number": b"7",
}  # fmt: skip


@pytest.mark.parametrize("what", [*FOREIGN, "folder"])
def test_a_foreign_file_blocks_no_table_and_is_never_overwritten(store, capsys, what):
    path = store.path("sweep", record(0).run_id)
    before = None if what == "folder" else FOREIGN[what]
    path.unlink()
    path.mkdir() if before is None else path.write_bytes(before)
    assert main(["sweep", f"results_dir={store.root}"]) == 0
    printed = capsys.readouterr()
    assert f"left out: {path.name}: " in printed.out and printed.err.count("\n") <= 3
    with pytest.raises(Damaged, match=f"{path.name}: .*; move the file away to run this again") as caught:
        with store.claim("sweep", record(0).run_id):
            pass
    assert "\n" not in str(caught.value) and not list((store.root / "state").rglob("*.lock"))
    assert path.is_dir() if before is None else path.read_bytes() == before


def test_a_clean_name_is_clean_and_json_says_what_was_looked_at(store, capsys):
    assert main(["verify=all", f"results_dir={store.root}", "json=true"]) == 0
    [verified] = json.loads(capsys.readouterr().out)
    assert (verified["records"], verified["without_digest"], verified["findings"]) == (2, 0, [])
    as_older(store, record(0))
    assert main(["verify=sweep", f"results_dir={store.root}"]) == 0
    assert "2 records, no findings; 1 are from before digests" in capsys.readouterr().out
    assert main(["verify=swep", f"results_dir={store.root}"]) == 2
    assert main(["verify=sweep", "json=yes", f"results_dir={store.root}"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_verify_names_copies_under_another_seed_and_what_was_left(store, capsys):
    twin = record(5)
    twin.curve = record(0).curve
    store.write(twin, items())
    run = record(0).run_id
    left = ["state/sweep/" + run + "/checkpoint.pt", f"state/sweep/{'0' * 16}/checkpoint.pt", "state/sweep/ab.pack",
            f"records/sweep/{'1' * 16}{ITEMS}", "tables/.sweep.md.abcdef-1-2.abcdefgh.part"]  # fmt: skip
    for name in left:
        (store.root / name).parent.mkdir(parents=True, exist_ok=True)
        (store.root / name).touch()
    assert main(["verify=sweep", f"results_dir={store.root}"]) == 1
    out = capsys.readouterr().out
    assert "duplicate: " in out and out.count("leftover: ") == len(left) and "6 findings" in out


def test_a_sweep_removes_what_the_dead_left_and_nothing_else(store, tmp_path):
    run, running = record(0).run_id, record(9).run_id
    for name in (run, running):
        store.state("sweep", name).mkdir(parents=True)
        (store.state("sweep", name) / "checkpoint.pt").touch()
    (store.root / "state/sweep" / f"{run}.lock").touch()
    store.sweep("sweep")
    assert [path.name for path in (store.root / "state/sweep").iterdir()] == [running]


def test_a_pack_killed_while_it_wrote_its_records_is_recorded_whole(tmp_path, monkeypatch):
    store, whole = Store(tmp_path / "a"), Store(tmp_path / "b")
    runs = [(record(seed), items()) for seed in (3, 4, 5)]
    whole.write_all(runs)

    def die(files):
        files = list(files)
        from lorax.records.writing import write_together

        write_together(files[:3])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_together", die)
        with pytest.raises(KeyboardInterrupt):
            store.write_all(runs)
    assert sum(store.path("sweep", one.run_id).exists() for one, _ in runs) == 1
    with store.claim("sweep", runs[2][0].run_id) as found:
        assert found is not None and found.scores == runs[2][0].scores
    assert [one.to_json() for one in store.read("sweep")] == [one.to_json() for one in whole.read("sweep")]
    assert not [path for path in (tmp_path / "a/state").rglob("*") if path.is_file()]


def test_who_waits_says_for_whom(tmp_path, monkeypatch, capsys):
    import os

    monkeypatch.setattr(claims, "SAY_AFTER", 0.1)
    lock = tmp_path / "run.lock"
    held, released = claims.acquire(lock), threading.Event()
    waiter = threading.Thread(target=lambda: (claims.acquire(lock).release(), released.set()))
    waiter.start()
    assert not released.wait(0.5)
    held.release()
    assert released.wait(5)
    waiter.join()
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"waiting for process {os.getpid()} on " in line and str(lock) in line


@pytest.fixture
def no_kernel_locks(monkeypatch):
    """As on a file system whose kernel locks no files."""
    monkeypatch.setattr(claims, "has_kernel_locks", lambda folder: False)
    monkeypatch.setattr(claims, "SAY_AFTER", 0.05)
    monkeypatch.setattr(claims, "STALE_AFTER", 0.5)


def test_a_lock_file_that_its_holder_touches_no_more_is_taken_over(tmp_path, monkeypatch, capsys, no_kernel_locks):
    from filelock import SoftFileLease

    elsewhere, lock = SoftFileLease(tmp_path / "run.lock", lease_duration=0.5), tmp_path / "run.lock"
    with monkeypatch.context() as patch:
        patch.setattr("filelock._marker.host_name", lambda: "another.machine")
        patch.setattr(SoftFileLease, "_start_heartbeat", lambda *words: None)  # it has been switched off
        elsewhere.acquire()
    assert claims.holder(lock) is not None and claims.holder(lock)[1] == "another.machine"
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(claims.Claimed, match="on another.machine has this run"):
            pool.submit(claims.acquire, lock, 0).result()
        pool.submit(lambda: claims.acquire(lock).release()).result()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "on another.machine" in said and "taken over if silent for 0 s" in said


def test_a_lock_file_whose_holder_is_alive_is_waited_for(tmp_path, no_kernel_locks):
    held = claims.acquire(tmp_path / "run.lock")
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(claims.Claimed):
            pool.submit(claims.acquire, tmp_path / "run.lock", 0.9).result()  # longer than what makes it stale
        held.release()
        pool.submit(lambda: claims.acquire(tmp_path / "run.lock", 5).release()).result()
    assert not list(tmp_path.iterdir())


def test_a_file_system_s_locks_are_tried_not_guessed(tmp_path, monkeypatch):
    from filelock import FileLock, SoftFileLease

    assert isinstance(claims.lock_of(tmp_path / "run.lock"), FileLock) and not list(tmp_path.iterdir())
    folder = tmp_path / "network"
    folder.mkdir()

    def refuse(self, *words, **more):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", refuse)
        lock = claims.lock_of(folder / "run.lock")
    assert isinstance(lock, SoftFileLease) and lock.lease_duration == claims.STALE_AFTER


def test_a_claim_that_does_not_wait_says_who_has_the_run(tmp_path):
    store, held, done = Store(tmp_path), threading.Event(), threading.Event()

    def hold():
        with store.claim("n", "r"):
            held.set()
            done.wait(10)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        assert held.wait(10)
        with pytest.raises(claims.Claimed, match="has this run"), store.claim("n", "r", timeout=0):
            pass
        done.set()
    with store.claim("n", "r", timeout=0) as record:
        assert record is None


NAMES = [".", "..", "../x", "a/../../x", "/tmp/x", "a//b", "", "a/.", "~/x", "a\x00b", "x" * 5000]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_stay_inside_the_results_folder(tmp_path, capsys, name):
    store = Store(tmp_path / "results")
    with pytest.raises(UserError, match="name=") as caught:
        store.folder(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert main([name, f"results_dir={store.root}"]) in (0, 2) and list(tmp_path.iterdir()) == []
    capsys.readouterr()


def test_a_clock_that_was_ahead_makes_no_record_the_newest():
    ahead = (datetime.now(UTC) + timedelta(days=365)).isoformat(timespec="seconds")
    old = record(0, provenance={"finished": ahead})
    new = record(0, provenance={"finished": "2026-01-01T00:00:00+00:00"})
    old.identity, new.identity = ({**old.identity, "versions": {"training": version}} for version in (1, 2))
    old.run_id, new.run_id = run_id(old.identity), run_id(new.identity)
    assert finished_at(old) == "" and one_per_seed([old, new]) == [new]
    assert fresh([old, new])[0] == [new]


def test_the_digest_is_of_everything(store):
    text = store.path("sweep", record(0).run_id).read_text()
    data = json.loads(text)
    digest = data.pop("digest")
    assert digest == content_digest(data) and math.isclose(data["scores"]["test"]["score"], 0.5)
    assert content_digest(data | {"label": "x"}) != digest
