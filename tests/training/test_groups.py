"""Task groups: several adapters trained as one run, with tied tensors and one optimiser."""

from dataclasses import replace

import pytest
import torch
from small_training import encode

from lorax.adapters.face import TrainingRule
from lorax.adapters.install import install
from lorax.adapters.tying import tie
from lorax.api import attach, make_factors
from lorax.errors import UserError
from lorax.initializers.registry import build
from lorax.training.loop import Run, TrainPlan, train

PLAN = TrainPlan(steps=8, batch_size=4, warmup=0.2, clip=0.5)


def handles_of(loaded, count, name="lora"):
    method = build(name, shared={"rank": 2})
    return install(loaded.model, [make_factors(loaded.model, method) for _ in range(count)])


def go(toy, sums, tied=("A",), task_group="all", seeds=(0, 0), plan=PLAN, name="lora", **more):
    loaded = toy(dtype="float64")
    handles = handles_of(loaded, 2, name)
    if tied:
        tie(*handles, tensors=tied)
    data = encode(sums, loaded, "train")
    halves = [data[: len(data) // 2], data[len(data) // 2 :]]
    runs = [
        Run(adapters=handle, data=half, lr=1e-2, seed=seed, task_group=task_group, name=f"{index}", **more)
        for index, (handle, half, seed) in enumerate(zip(handles, halves, seeds, strict=True))
    ]
    return handles, train(loaded, runs, plan)


@pytest.mark.parametrize("name,shared", [("lora", "A"), ("pissa", "dA")])
def test_tied_tensors_stay_one_and_the_others_go_their_ways(toy, sums, name, shared):
    handles, outcomes = go(toy, sums, tied=(shared,), name=name)
    first, second = (handle.named_parameters() for handle in handles)
    for key in first:
        assert (first[key] is second[key]) == key.endswith(f".{shared}")
    assert any(not torch.equal(first[key], second[key]) for key in first)
    norms = [[row["grad_norm"] for row in outcome.curve] for outcome in outcomes]
    assert norms[0] == norms[1] and outcomes[0].curve != outcomes[1].curve


def test_members_that_share_all_and_see_the_same_are_one_run(toy, sums):
    loaded = toy(dtype="float64")
    handles = handles_of(loaded, 2)
    tie(*handles, tensors=("B", "A"))
    data = encode(sums, loaded, "train")
    outcomes = train(loaded, [Run(adapters=handle, data=data, lr=1e-2, task_group="all") for handle in handles], PLAN)
    other = toy(dtype="float64")
    single = attach(other.model, "lora", rank=2)
    [expected] = train(other, [Run(adapters=single, data=data, lr=1e-2)], PLAN)
    for ours, theirs in zip(handles[0].parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
    assert [row["loss"] for row in outcomes[1].curve] == pytest.approx([row["loss"] for row in expected.curve])


class _Gradient(TrainingRule):
    def after_backward(self, step, adapters):
        self.kept = [value.grad.clone() for value in adapters.parameters()]


def test_the_gradient_of_a_tied_tensor_is_the_mean_over_its_lanes(toy, sums):
    one = replace(PLAN, steps=1, clip=None)
    rule = _Gradient()
    go(toy, sums, tied=("B", "A"), plan=one, rule=rule)
    separate = []
    for half in (0, 1):
        loaded = toy(dtype="float64")
        adapters, kept = attach(loaded.model, "lora", rank=2), _Gradient()
        data = encode(sums, loaded, "train")
        halves = [data[: len(data) // 2], data[len(data) // 2 :]]
        train(loaded, [Run(adapters=adapters, data=halves[half], lr=1e-2, rule=kept)], one)
        separate.append(kept.kept)
    for ours, a, b in zip(rule.kept, *separate, strict=True):
        torch.testing.assert_close(ours, (a + b) / 2, rtol=1e-8, atol=1e-12)


def test_a_group_resumes_to_the_same_bits(toy, sums, tmp_path):
    whole, expected = go(toy, sums)
    plan = replace(PLAN, checkpoint_every=3)

    def attempt(on_step=None):
        loaded = toy(dtype="float64")
        handles = handles_of(loaded, 2)
        tie(*handles)
        data = encode(sums, loaded, "train")
        halves = [data[: len(data) // 2], data[len(data) // 2 :]]
        runs = [
            Run(adapters=handle, data=half, lr=1e-2, task_group="all", name=f"{index}", on_step=on_step,
                checkpoint=tmp_path / f"{index}.pt")
            for index, (handle, half) in enumerate(zip(handles, halves, strict=True))
        ]  # fmt: skip
        return handles, train(loaded, runs, plan)

    def killed(row):
        if row["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(killed)
    handles, outcomes = attempt()
    assert [outcome.resumed for outcome in outcomes] == [3, 3]
    assert [outcome.curve for outcome in outcomes] == [outcome.curve for outcome in expected]
    for ours, theirs in zip(handles, whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_one_end_for_all_of_a_group(toy, sums):
    _, outcomes = go(toy, sums, plan=replace(PLAN, clip=None), **{"weight_decay": float("inf")})
    assert {outcome.status for outcome in outcomes} == {"diverged"}
    assert len({len(outcome.curve) for outcome in outcomes}) == 1


def test_moving_the_model_keeps_tied_tensors_one(toy):
    loaded = toy(dtype="float64")
    first, second = handles_of(loaded, 2)
    tie(first, second)
    loaded.model.to("cpu", torch.float64)
    copied = {key: value for key, value in second.named_parameters().items() if key.endswith(".A")}
    assert all(first.named_parameters()[key] is value for key, value in copied.items())


def test_what_cannot_be_tied_or_grouped_is_one_line(toy, sums):
    loaded = toy(dtype="float64")
    plans = [make_factors(loaded.model, build("lora", shared={"rank": rank})) for rank in (2, 3)]
    first, second = install(loaded.model, plans)
    with pytest.raises(UserError, match="A cannot be tied: every lane must train it, in one shape"):
        tie(first, second)
    with pytest.raises(UserError, match="must be trained as one task group"):
        go(toy, sums, task_group=None)
    with pytest.raises(UserError, match="task group all: its runs differ in seed"):
        go(toy, sums, seeds=(0, 1))
    first.detach()
    second.detach()
    with pytest.raises(UserError, match="not installed together"):
        tie(handles_of(loaded, 2)[0], handles_of(toy(dtype="float64"), 2)[1])
