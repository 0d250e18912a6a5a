import hashlib
import io
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import encode

from lorax.api import attach
from lorax.forward.batch import Encoded
from lorax.forward.heads import install_heads
from lorax.models.registry import load
from lorax.training import checkpoint
from lorax.training.checkpoint import load_checkpoint, load_checkpoints, save_checkpoints
from lorax.training.loop import Run, TrainPlan, train

PLAN = TrainPlan(steps=10, batch_size=4, checkpoint_every=4)


def killable(path, on_step=None):
    """A run of twelve steps with a checkpoint every three."""
    torch.set_num_threads(1)
    loaded = load({"name": "toy", "hidden": 32})
    data = [Encoded([259, a, b, 257, 260], [(a + b) % 256, 257], None) for a in range(6) for b in range(a, 6)]
    adapters = attach(loaded.model, "pissa", rank=2, dropout=0.1)
    run = Run(adapters=adapters, data=data, lr=1e-2, seed=1, checkpoint=path, on_step=on_step)
    [outcome] = train(loaded, [run], TrainPlan(steps=12, batch_size=4, checkpoint_every=3))
    return outcome, [value.detach() for value in adapters.parameters()]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    """The process that is killed is a fork of this one: it has nothing to import."""
    path = tmp_path / "state" / "run.pt"
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:

        def wait_in_the_seventh(row):
            if row["step"] == 7:
                os.write(write, b"7")
                time.sleep(600)

        try:
            killable(path, wait_in_the_seventh)
        finally:
            os._exit(99)
    os.close(write)
    assert os.read(read, 1) == b"7"
    os.close(read)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    resumed, values = killable(path)
    whole, expected = killable(tmp_path / "other.pt")
    assert resumed.resumed == 6 and whole.resumed == 0
    assert resumed.curve == whole.curve
    assert all(torch.equal(value, other) for value, other in zip(values, expected, strict=True))
    assert killable(path)[0].resumed == 12  # a finished run has nothing left to do


def test_a_run_stopped_between_checkpoints_resumes_from_the_last(toy, sums, tmp_path):
    rows = []
    loaded = toy()
    data = encode(sums, loaded, "train")

    def trained(steps, path=None):
        fresh = toy()
        adapters = attach(fresh.model, "lora", rank=2, dropout=0.1)
        run = Run(adapters=adapters, data=data, lr=1e-2, seed=2, checkpoint=path, on_step=rows.append)
        return train(fresh, [run], replace(PLAN, steps=steps))[0], adapters

    whole, expected = trained(10)
    path = tmp_path / "a.pt"
    stopped = replace(PLAN, steps=10)
    fresh = toy()
    adapters = attach(fresh.model, "lora", rank=2, dropout=0.1)

    def stop(row):
        if row["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(fresh, [Run(adapters=adapters, data=data, lr=1e-2, seed=2, checkpoint=path, on_step=stop)], stopped)
    rows.clear()
    resumed, adapters = trained(10, path)
    assert resumed.resumed == 4 and resumed.curve == whole.curve == rows
    for value, other in zip(adapters.parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, other)


def test_heads_travel_along(toy, parity, tmp_path):
    def run(steps, path):
        loaded = toy(labels=parity.labels)
        adapters = attach(loaded.model, "lora", rank=2)
        [head] = install_heads(loaded, [0])
        data = encode(parity, loaded, "train")
        run = Run(adapters=adapters, data=data, lr=1e-2, head=head, head_lr=1e-3, checkpoint=path)
        train(loaded, [run], replace(PLAN, steps=steps, schedule="constant", warmup=0.0))
        return head.state_dict()["score.weight"]

    path = tmp_path / "a.pt"
    first = run(8, path)
    assert torch.equal(run(8, path), first)  # read back, not trained again


def test_damaged_and_foreign_files_are_not_used_and_a_warning_says_so(tmp_path):
    path = tmp_path / "a.pt"
    assert load_checkpoint(path, "me") is None
    saved = {"step": 3, "values": torch.arange(3), "curve": [{"step": 0, "loss": float("nan")}]}
    save_checkpoints([(path, "me", saved)])
    state = load_checkpoint(path, "me")
    assert state["step"] == 3 and state["values"].tolist() == [0, 1, 2]
    with pytest.warns(UserWarning, match="belongs to another run"):
        assert load_checkpoint(path, "you") is None
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="cannot be read"):
        assert load_checkpoint(path, "me") is None
    assert list(tmp_path.iterdir()) == [path]


def test_no_code_is_read_from_a_checkpoint(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"version": 1, "fingerprint": "me", "step": time.sleep}, path)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert load_checkpoint(path, "me") is None


def states(*steps):
    """Made-up states of runs a, b, ... at these steps."""
    return [{"step": step, "values": torch.full((3,), float(step))} for step in steps]


def pack(folder, *steps):
    return [(folder / f"{name}.pt", name, state) for name, state in zip("abc", states(*steps), strict=False)]


def resumed(folder, names="ab"):
    states = load_checkpoints([(folder / f"{name}.pt", name) for name in names])
    return [None if state is None else state["step"] for state in states]


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize("call", range(1, 8))
def test_a_pack_killed_while_it_writes_resumes_from_one_moment(tmp_path, monkeypatch, call):
    """Two runs: two files put aside, two written, two renamed, one removed; before any of these it may die."""
    save_checkpoints(pack(tmp_path, 4, 4))
    left = [call]

    def counted(do):
        def doing(*arguments, **more):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return do(*arguments, **more)

        return doing

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # the dead remove nothing
        patch.setattr("lorax.training.checkpoint.remove", counted(lambda path: os.unlink(path)))
        save_checkpoints(pack(tmp_path, 8, 8))
    both = resumed(tmp_path)
    assert both in ([4, 4], [8, 8]) and both == [8, 8] * (call >= 7) + [4, 4] * (call < 7)
    assert resumed(tmp_path) == both, "reading again finds the same"
    save_checkpoints(pack(tmp_path, 12, 12))
    assert resumed(tmp_path) == [12, 12]


def test_runs_of_a_pack_that_are_recorded_are_not_waited_for(tmp_path):
    save_checkpoints(pack(tmp_path, 8, 2, 8))  # the second diverged at step 2
    (tmp_path / "a.pt").unlink()
    assert resumed(tmp_path, "bc") == [2, 8] and resumed(tmp_path, "c") == [8]
    save_checkpoints(pack(tmp_path, 4, 4)[1:])
    assert resumed(tmp_path, "b") == [4]


def test_a_pack_whose_member_has_no_usable_file_starts_over(tmp_path):
    save_checkpoints(pack(tmp_path, 8, 8))
    (tmp_path / "a.pt").unlink()
    with pytest.warns(UserWarning, match="b.pt: the others of its pack have no checkpoint of the same moment: start"):
        assert resumed(tmp_path) == [None, None]
    save_checkpoints(pack(tmp_path, 8, 8))
    (tmp_path / "a.pt").write_bytes(b"x" + (tmp_path / "a.pt").read_bytes()[1:])
    with pytest.warns(UserWarning) as caught:
        assert resumed(tmp_path) == [None, None]
    assert len(caught) == 1 and "a.pt cannot be read" in str(caught[0].message)


def damaged(raw, how):
    body = bytearray(raw)
    if how.startswith("bit"):
        body[int(how[3:]) * len(raw) // 100 % len(raw)] ^= 4
    return {"cut": raw[: len(raw) // 2], "short": raw[:-1], "longer": raw + b"x", "empty": b""}.get(how, bytes(body))


@pytest.mark.parametrize("how", ["cut", "short", "longer", "empty", *(f"bit{at}" for at in range(0, 101, 10))])
def test_no_changed_byte_is_believed(tmp_path, how):
    path = tmp_path / "a.pt"
    save_checkpoints(pack(tmp_path, 3)[:1])
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.warns(UserWarning, match="a.pt cannot be read .*: starting over") as caught:
        assert load_checkpoint(path, "a") is None
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


@pytest.mark.parametrize("value", [[1, 2], "text", {"a": 1}, 3, None, {"version": 2, "fingerprint": "a"}])
def test_what_is_no_state_is_not_believed(tmp_path, value):
    path, buffer = tmp_path / "a.pt", io.BytesIO()
    torch.save(value, path)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert load_checkpoint(path, "a") is None
    torch.save(value, buffer)  # and with a good end
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest() + checkpoint._END)
    with pytest.warns(UserWarning, match="holds no state"):
        assert load_checkpoint(path, "a") is None


def test_a_folder_in_its_place_and_a_full_disk_do_not_end_a_training(toy, sums, tmp_path, monkeypatch):
    loaded = toy()
    data = encode(sums, loaded, "train")
    path = tmp_path / "a.pt"
    path.mkdir()

    def trained():
        fresh = toy()
        run = Run(adapters=attach(fresh.model, "lora", rank=2), data=data, lr=1e-2, seed=2, checkpoint=path)
        return train(fresh, [run], PLAN)[0]

    with pytest.warns(UserWarning, match="training goes on without this checkpoint"):
        outcome = trained()
    assert outcome.status == "finished" and len(outcome.curve) == 10
    path.rmdir()
    assert trained().curve == outcome.curve and path.is_file()
