import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import encode

from lorax.api import attach
from lorax.forward.heads import install_heads
from lorax.training.checkpoint import load_checkpoint, save_checkpoints
from lorax.training.loop import Run, TrainPlan, train

PLAN = TrainPlan(steps=10, batch_size=4, checkpoint_every=4)

SCRIPT = """
import sys
from types import SimpleNamespace
from pathlib import Path
import torch
from lorax.api import attach
from lorax.models.registry import load
from lorax.forward.batch import Encoded
from lorax.training.loop import Run, TrainPlan, train

def data():
    return [Encoded([259, a, b, 257, 260], [(a + b) % 256, 257], None) for a in range(6) for b in range(a, 6)]

def run(path, on_step=None):
    torch.set_num_threads(1)
    loaded = load({"name": "toy", "hidden": 32})
    adapters = attach(loaded.model, "pissa", rank=2, dropout=0.1)
    run = Run(adapters=adapters, data=data(), lr=1e-2, seed=1, checkpoint=path, on_step=on_step)
    [outcome] = train(loaded, [run], TrainPlan(steps=12, batch_size=4, checkpoint_every=3))
    return outcome, [value.detach() for value in adapters.parameters()]

if __name__ == "__main__":
    import time
    def slow(row):
        print(row["step"], flush=True)
        if row["step"] == 7:
            time.sleep(600)
    run(Path(sys.argv[1]), slow)
"""


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    script = tmp_path / "killed_run.py"
    script.write_text(SCRIPT)
    path = tmp_path / "state" / "run.pt"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert any(line.strip() == "7" for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    scope = {"__name__": "killed_run"}
    exec(compile(SCRIPT, str(script), "exec"), scope)
    resumed, values = scope["run"](path)
    whole, expected = scope["run"](tmp_path / "other.pt")
    assert resumed.resumed == 6 and whole.resumed == 0
    assert resumed.curve == whole.curve
    assert all(torch.equal(value, other) for value, other in zip(values, expected, strict=True))
    assert scope["run"](path)[0].resumed == 12  # a finished run has nothing left to do


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
