"""A base that is spread over two processes (gloo): losses, trained factors and answers are those of one process."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from small_training import encode, make_sums
from torch import distributed, nn
from torch import multiprocessing as mp
from torch.distributed.tensor import DTensor

from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.evaluation.evaluate import evaluate
from lorax.forward.blocks.sharded import blocks_of, shard
from lorax.initializers.registry import build
from lorax.models.registry import load
from lorax.training.loop import Run, TrainPlan, train

PLAN = TrainPlan(steps=5, batch_size=4, share_prefix=False, compile="eager", progress=False)
ARMS = [("lora", 4, 5), ("pissa", 2, 3), ("lora_xs", 3, 5)]
"""Method, rank, steps: one process has the first and the third, the other ends after three steps and idles along."""


def runs_of(loaded, task, arms, first_seed=0):
    methods = [build(name, shared={"rank": rank}, own={}) for name, rank, _ in arms]
    factors = [make_factors(loaded.model, method, seed=seed) for seed, method in enumerate(methods, first_seed)]
    data = encode(task, loaded, "train")
    return [
        Run(adapters=adapters, data=data, lr=1e-2, seed=3, plan=TrainPlan(**(vars(PLAN) | {"steps": arm[2]})))
        for adapters, arm in zip(install(loaded.model, factors), arms, strict=True)
    ]


def trained(loaded, task, runs):
    outcomes = train(loaded, runs, PLAN)
    items = evaluate(loaded, task, "test", [run.adapters for run in runs])
    return [
        {
            "losses": torch.tensor([row["loss"] for row in outcome.curve]),
            "factors": {name: value.detach() for name, value in run.adapters.named_parameters().items()},
            "answers": [item["completion"] for item in answers],
            "scored": torch.tensor([item["loss"] for item in answers]),
        }
        for run, outcome, answers in zip(runs, outcomes, items, strict=True)
    ]


def work(rank, size, folder, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=size)
    task, loaded = make_sums(), load({"name": "toy", "hidden": 32})
    runs = runs_of(loaded, task, ARMS[rank::size])
    blocks = [list(block.parameters()) for block in blocks_of(loaded.model)]
    lockstep = shard(loaded, [run.adapters for run in runs], torch.device("cpu"))
    results = trained(loaded, task, runs)
    lockstep.idle_along()
    spread = [value for block in blocks_of(loaded.model) for value in block.parameters() if isinstance(value, DTensor)]
    facts = {
        "passes": lockstep.passes,
        "held": sum(value.to_local().numel() for value in spread) / sum(value.numel() for value in spread),
        "left": sum(value.numel() for block in blocks for value in block if not value.requires_grad),
        "gradients": sum(value.grad is not None for value in spread),
    }
    torch.save((results, facts), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_half_of_the_base_each_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(2, tmp_path, port), nprocs=2)
    (first, facts), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert facts["passes"] == others["passes"] and facts["gradients"] == others["gradients"] == 0
    assert facts["held"] == others["held"] == 0.5 and facts["left"] == others["left"] == 0  # no whole weight is kept
    task = make_sums()
    for arm, ours in zip([ARMS[0], ARMS[2], ARMS[1]], [*first, *second], strict=True):
        loaded = load({"name": "toy", "hidden": 32})
        rank = [ARMS[0], ARMS[2]].index(arm) if arm is not ARMS[1] else 0
        methods = build(arm[0], shared={"rank": arm[1]}, own={})
        factors = make_factors(loaded.model, methods, seed=rank)
        plan = TrainPlan(**(vars(PLAN) | {"steps": arm[2]}))
        run = Run(
            adapters=install(loaded.model, factors), data=encode(task, loaded, "train"), lr=1e-2, seed=3, plan=plan
        )
        [theirs] = trained(loaded, task, [run])
        torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours["scored"], theirs["scored"], rtol=1e-5, atol=1e-5)
        assert ours["answers"] == theirs["answers"]
        pairs = zip(ours["factors"].values(), theirs["factors"].values(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs), arm


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="no list of blocks"):
        blocks_of(nn.Sequential(nn.Linear(2, 2)))


def test_blocks_are_the_list_with_most_of_the_weights(toy):
    model = toy().model
    assert blocks_of(model) == list(model.model.layers)
