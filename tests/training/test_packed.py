"""K runs packed on one frozen base are K single runs: the test that guards packed training."""

from dataclasses import replace

import pytest
import torch
from small_training import encode

from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.evaluation.evaluate import evaluate
from lorax.forward.heads import install_heads
from lorax.initializers.registry import build
from lorax.training.loop import Run, TrainPlan, train

PLAN = TrainPlan(steps=20, batch_size=4, warmup=0.2)
ARMS = [
    # method, own fields, rank, seed, dropout, lr, plan
    ("lora", {}, 4, 0, 0.0, 1e-2, PLAN),
    ("pissa", {}, 2, 1, 0.0, 2e-3, replace(PLAN, clip=0.3, schedule="linear")),
    ("lora_xs", {}, 3, 2, 0.0, 2e-2, replace(PLAN, steps=12)),
    ("svft", {}, None, 3, 0.0, 2e-2, PLAN),
    ("lora", {}, 2, 4, 0.2, 1e-2, replace(PLAN, clip=None)),
    ("milora", {}, 2, 1, 0.1, 2e-3, PLAN),
]


def factors(loaded, arm):
    name, own, rank, seed, *_ = arm
    return make_factors(loaded.model, build(name, shared={"rank": rank}, own=own), seed=seed)


def runs_of(loaded, task, arms):
    handles = install(loaded.model, [factors(loaded, arm) for arm in arms], dropout=[arm[4] for arm in arms])
    heads = install_heads(loaded, [arm[3] for arm in arms]) or [None] * len(arms)
    data = encode(task, loaded, "train")
    return [
        Run(adapters=handle, data=data[index:], lr=arm[5], seed=arm[3], plan=arm[6], head=head, head_lr=1e-2)
        for index, (handle, arm, head) in enumerate(zip(handles, arms, heads, strict=True))
    ]


def alone(make, task, arms, index):
    loaded = make()
    [run] = runs_of(loaded, task, arms[index : index + 1])
    run.data = encode(task, loaded, "train")[index:]
    [outcome] = train(loaded, [run], PLAN)
    return loaded, run, outcome


def assert_same(packed, single, outcome, other):
    assert outcome.status == other.status and len(outcome.curve) == len(other.curve)
    for ours, theirs in zip(outcome.curve, other.curve, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    pairs = zip(packed.adapters.named_parameters().items(), single.adapters.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-9, name


def test_mixed_runs_equal_their_single_runs(toy, sums):
    """Methods, ranks, seeds, data, dropout, rates, schedules, clipping and lengths all differ.

    One of them drops, so the pack computes every row whole; the others alone share their beginnings.
    """
    sums.system = "Compute."
    loaded = toy()
    packed = runs_of(loaded, sums, ARMS)
    outcomes = train(loaded, packed, PLAN)
    items = evaluate(loaded, sums, "test", [run.adapters for run in packed])
    for index, outcome in enumerate(outcomes):
        other, single, expected = alone(toy, sums, ARMS, index)
        assert_same(packed[index], single, outcome, expected)
        [rows] = evaluate(other, sums, "test", [single.adapters])
        assert [row["completion"] for row in items[index]] == [row["completion"] for row in rows]
        assert [row["loss"] for row in items[index]] == pytest.approx([row["loss"] for row in rows], rel=1e-5)


def test_packed_heads_equal_single_heads(toy, parity):
    def make():
        return toy(labels=parity.labels)

    loaded, arms = make(), [ARMS[0], ARMS[3]]
    packed = runs_of(loaded, parity, arms)
    outcomes = train(loaded, packed, PLAN)
    items = evaluate(loaded, parity, "test", [run.adapters for run in packed], [run.head for run in packed])
    for index, outcome in enumerate(outcomes):
        other, single, expected = alone(make, parity, arms, index)
        assert_same(packed[index], single, outcome, expected)
        for ours, theirs in zip(packed[index].head.parameters(), single.head.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7)
        [rows] = evaluate(other, parity, "test", [single.adapters], [single.head])
        assert [row["completion"] for row in items[index]] == [row["completion"] for row in rows]


def test_a_diverged_run_is_retired_and_the_others_train_as_without_it(toy, sums):
    sums.system = "Compute."
    arms = [ARMS[0], ("lora", {}, 4, 5, 0.0, 1e30, replace(PLAN, clip=None, warmup=0.0)), ARMS[1]]
    loaded = toy()
    packed = runs_of(loaded, sums, arms)
    outcomes = train(loaded, packed, PLAN)
    assert [outcome.status for outcome in outcomes] == ["finished", "diverged", "finished"]
    assert len(outcomes[1].curve) < 5 and "step" in outcomes[1].error
    for index in (0, 2):
        _, single, expected = alone(toy, sums, arms, index)
        assert_same(packed[index], single, outcomes[index], expected)


def test_under_autocast_packed_runs_stay_near_their_single_runs(toy, sums):
    """Another blocking of the bf16 products rounds differently: a percent of the loss, not more."""
    plan = replace(PLAN, steps=8, autocast="bfloat16")
    arms = [(*arm[:6], plan) for arm in ARMS[:2]]
    outcomes = train(loaded := toy(), runs_of(loaded, sums, arms), plan)
    for index, outcome in enumerate(outcomes):
        _, _, expected = alone(toy, sums, arms, index)
        assert [row["loss"] for row in outcome.curve] == pytest.approx([r["loss"] for r in expected.curve], rel=0.01)


def test_a_run_of_a_killed_pack_resumes_alone(toy, sums, tmp_path):
    plan = replace(PLAN, steps=10, checkpoint_every=3)
    arms = [(*arm[:6], plan) for arm in ARMS[:2]]
    packed = runs_of(loaded := toy(), sums, arms)
    packed[1].checkpoint = path = tmp_path / "run.pt"

    def stop(row):
        if row["step"] == 7:
            raise KeyboardInterrupt

    packed[0].on_step = stop
    with pytest.raises(KeyboardInterrupt):
        train(loaded, packed, plan)
    other = toy()
    [single] = runs_of(other, sums, arms[1:])
    single.data, single.checkpoint = packed[1].data, path
    [outcome] = train(other, [single], plan)
    assert outcome.resumed == 6
    _, whole, expected = alone(toy, sums, arms, 1)
    assert_same(single, whole, outcome, expected)


def test_runs_of_one_pack_share_batch_shape_and_base(toy, sums):
    loaded = toy()
    packed = runs_of(loaded, sums, [ARMS[0], (*ARMS[1][:6], replace(PLAN, batch_size=8))])
    with pytest.raises(UserError, match="runs of one pack differ in batch_size"):
        train(loaded, packed, PLAN)
    strangers = [runs_of(toy(), sums, [ARMS[0]])[0] for _ in range(2)]
    with pytest.raises(UserError, match="2 adapters that were not installed together"):
        train(loaded, strangers, PLAN)
