"""Clipping and update inside a recording: what is replayed is, bit for bit, what an eager step does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_training import encode
from tape import Tapes

from lorax.adapters.face import TrainingRule
from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.initializers.registry import build
from lorax.training.ending import Ending
from lorax.training.loop import Run, TrainPlan, train
from lorax.training.update import Update

PLAN = TrainPlan(steps=20, batch_size=2, warmup=0.2, share_prefix=False, skip_padding=False)
METHODS = ["lora", "lora_plus", "pissa", "milora", "lora_xs", "svft"]
RANKS = [4, 2, 3, 1, 2, None]


def even(task, loaded):
    """Rows of one length with one number of labels: an eager batch then has the shape of a recorded one."""
    data = encode(task, loaded, "train")
    first = data[0]
    return [row for row in data if (len(row), len(row.labels)) == (len(first), len(first.labels))]


def trained(toy, task, recorder, plan=PLAN, methods=METHODS, change=lambda runs: None, dropout=0.1, dtype="float32"):
    loaded = toy(dtype=dtype)
    made = [build(name, shared={"rank": rank}) for name, rank in zip(methods, RANKS, strict=False)]
    handles = install(
        loaded.model,
        [make_factors(loaded.model, one, seed=k) for k, one in enumerate(made)],
        dropout=[dropout * (k % 2) for k in range(len(made))],
    )
    data = even(task, loaded)
    runs = [
        Run(
            adapters=handle, data=data[k:], lr=1e-2 / (k + 1), seed=k, rates=one.rates, rule=one.rule(),
            weight_decay=0.1 * k, plan=replace(plan, clip=None if k == 2 else 0.1 * (k + 1)),
        )
        for k, (handle, one) in enumerate(zip(handles, made, strict=True))
    ]  # fmt: skip
    change(runs)
    outcomes = train(loaded, runs, plan, recorder)
    return outcomes, [run.adapters.state_dict() for run in runs]


def assert_equal(ours, theirs, lanes=None):
    for k in range(len(theirs[0])) if lanes is None else lanes:
        assert (ours[0][k].status, ours[0][k].curve) == (theirs[0][k].status, theirs[0][k].curve)
        for name, value in theirs[1][k].items():
            assert torch.equal(ours[1][k][name], value), (k, name)


@pytest.fixture
def eager_updates(monkeypatch):
    """Count updates that Python ran."""
    seen, form = [], Ending._update

    def counting(self, losses, penalties, whole):
        seen.append(whole)
        return form(self, losses, penalties, whole)

    monkeypatch.setattr(Ending, "_update", counting)
    return seen


@pytest.mark.filterwarnings("error:a step could not")
def test_a_mixed_pack_is_updated_bit_for_bit_as_eager(toy, sums, eager_updates):
    """Six methods, mixed ranks, rates by tensor, weight decay, lanes with and without a bound, dropout."""
    tapes = Tapes()
    replayed = trained(toy, sums, tapes)
    assert eager_updates == [True, True]  # as it is, then while it was recorded
    assert len(tapes.tapes) == 2 and tapes.replays == 2 * (PLAN.steps - 1)
    assert_equal(replayed, trained(toy, sums, None))


@pytest.mark.filterwarnings("error:a step could not")
def test_gradients_of_micro_batches_add_up_and_are_cleared_inside_the_recording(toy, sums, eager_updates):
    plan, tapes = replace(PLAN, steps=8, batch_size=4, accumulation=2), Tapes()
    replayed = trained(toy, sums, tapes, plan, ["lora", "pissa", "svft"])
    assert len(eager_updates) == 2 and len(tapes.tapes) == 2
    assert_equal(replayed, trained(toy, sums, None, plan, ["lora", "pissa", "svft"]))


@pytest.mark.filterwarnings("error:a step could not")
def test_a_lane_that_diverges_inside_the_recording_changes_no_bit_of_the_others(toy, sums, eager_updates):
    def wild(runs):
        runs[1].lr, runs[1].plan = 1e30, replace(PLAN, clip=None)

    methods = ["lora", "pissa", "lora", "svft", "lora_xs"]
    healthy, tapes = trained(toy, sums, Tapes(), methods=methods), Tapes()
    one_wild = trained(toy, sums, tapes, methods=methods, change=wild)
    assert [one.status == "diverged" for one in one_wild[0]] == [False, True, False, False, False]
    assert len(one_wild[0][1].curve) < 4 and len(tapes.tapes) == 2 and len(eager_updates) == 4
    assert_equal(one_wild, healthy, lanes=[0, 2, 3, 4])
    assert all(value.isfinite().all() for value in one_wild[1][0].values())


class _Watching(TrainingRule):
    """Takes part in everything: changes gradients, adds a penalty, looks at clipped gradients after the update."""

    def __init__(self):
        self.seen = []

    def penalty(self, adapters):
        return 1e-2 * sum(value.square().sum() for value in adapters.parameters())

    def after_backward(self, step, adapters):
        with torch.no_grad():
            for value in adapters.parameters():
                value.grad.mul_(0.5)
        self.seen.append(float(sum(value.grad.abs().sum() for value in adapters.parameters())))

    def after_update(self, step, adapters):
        self.seen.append(float(sum(value.grad.abs().sum() for value in adapters.parameters())))


@pytest.mark.filterwarnings("error:a step could not")
def test_a_rule_finds_the_gradients_between_the_recorded_passes_and_the_recorded_update(toy, sums, eager_updates):
    def ruled(runs):
        runs[0].rule = _Watching()
        rules.append(runs[0].rule)

    rules, tapes, plan = [], Tapes(), replace(PLAN, steps=8)
    replayed = trained(toy, sums, tapes, plan, ["lora", "pissa"], ruled)
    assert eager_updates == [False, False] and len(tapes.tapes) == 2
    assert_equal(replayed, trained(toy, sums, None, plan, ["lora", "pissa"], ruled))
    assert rules[0].seen == rules[1].seen and len(rules[0].seen) == 16 and all(rules[0].seen)
    assert all("penalty" in row for row in replayed[0][0].curve)


@pytest.mark.parametrize("recorders", [(None, Tapes), (Tapes, None)], ids=["eager then recorded", "the other way"])
def test_a_run_resumed_in_the_other_mode_is_the_same_bit_for_bit(toy, sums, tmp_path, recorders):
    plan = replace(PLAN, steps=10, checkpoint_every=4)

    def killed(row):
        if row["step"] == 6:
            raise KeyboardInterrupt

    def kept(runs):
        for k, run in enumerate(runs):
            run.checkpoint, run.name = tmp_path / f"{k}.pt", str(k)

    def dying(runs):
        kept(runs)
        runs[0].on_step = killed

    methods = ["lora", "pissa", "lora_plus"]
    whole = trained(toy, sums, None, replace(plan, checkpoint_every=0), methods)
    first, then = (make and make() for make in recorders)
    with pytest.raises(KeyboardInterrupt):
        trained(toy, sums, first, plan, methods, dying)
    resumed = trained(toy, sums, then, plan, methods, kept)
    assert [one.resumed for one in resumed[0]] == [4, 4, 4]
    assert_equal(resumed, whole)


def test_what_lies_in_no_buffer_is_updated_after_the_replay(toy, sums, monkeypatch):
    """A method in plain operations beside none: passes are replayed, torch's AdamW runs as ever."""
    steps, form = [], Update.apply

    def counting(self, *args):
        steps.append(self.optimizer is not None)
        form(self, *args)

    monkeypatch.setattr(Update, "apply", counting)
    tapes, plan = Tapes(), replace(PLAN, steps=6)
    replayed = trained(toy, sums, tapes, plan, ["dora"])
    assert len(tapes.tapes) == 1 and tapes.replays == 5 and steps == [True] * 6
    assert_equal(replayed, trained(toy, sums, None, plan, ["dora"]))


class _NoUpdates(Tapes):
    """Records passes and refuses updates."""

    def record(self, work):
        if self.tapes:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return super().record(work)


def test_an_update_that_cannot_be_recorded_runs_eager_and_is_said(toy, sums):
    plan = replace(PLAN, steps=5)
    with pytest.warns(UserWarning, match=r"a step could not be recorded \(operation not permitted .*\); steps run"):
        ours = trained(toy, sums, _NoUpdates(), plan, ["lora"])
    assert_equal(ours, trained(toy, sums, None, plan, ["lora"]))
