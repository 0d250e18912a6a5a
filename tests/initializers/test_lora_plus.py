"""LoRA+: B moves at `ratio` times the rate of A, and a ratio of 1 is LoRA."""

import pytest
import torch
from small_training import encode

from lorax.api import attach
from lorax.errors import UserError
from lorax.initializers.registry import build
from lorax.training.loop import Run, TrainPlan, train

PLAN = TrainPlan(steps=3, batch_size=4, warmup=0.0, schedule="constant", clip=None)


def trained(toy, sums, name, lr=1e-3, **fields):
    loaded = toy(dtype="float64")
    method = build(name, shared={"rank": 2}, own=fields)
    adapters = attach(loaded.model, method)
    starts = {key: value.detach().clone() for key, value in adapters.named_parameters().items()}
    train(loaded, [Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=lr, rates=method.rates)], PLAN)
    return {key: value.detach() - starts[key] for key, value in adapters.named_parameters().items()}


def test_a_ratio_of_one_is_lora(toy, sums):
    plus, plain = trained(toy, sums, "lora_plus", ratio=1.0), trained(toy, sums, "lora")
    assert all(torch.equal(plus[key], plain[key]) for key in plain)


def test_the_first_adam_step_of_b_is_the_ratio_times_that_of_a(toy, sums):
    """Adam's first step is lr on every number with a gradient: that of B, since B = 0 gives A none."""
    one = TrainPlan(steps=1, batch_size=4, warmup=0.0, schedule="constant", clip=None)
    loaded = toy(dtype="float64")
    method = build("lora_plus", shared={"rank": 2}, own={"ratio": 8.0})
    adapters = attach(loaded.model, method)
    train(loaded, [Run(adapters=adapters, data=encode(sums, loaded, "train"), lr=1e-3, rates=method.rates)], one)
    sizes = torch.cat([f.B.abs().flatten() for f in adapters.factors().values()])
    assert float(sizes.median()) == pytest.approx(8e-3, rel=1e-3)


def test_a_ratio_needs_a_number_above_zero():
    with pytest.raises(UserError, match="ratio=0: a finite number above 0"):
        build("lora_plus", own={"ratio": 0})
