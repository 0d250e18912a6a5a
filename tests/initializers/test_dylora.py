"""DyLoRA: a truncation is a LoRA of that rank, draws are the run's own, and the variants train what they say."""

import pytest
import torch
from torch import nn

import lorax
from lorax.adapters.face import Step
from lorax.errors import UserError
from lorax.initializers.dylora import at_rank
from lorax.initializers.registry import build, consumed

R, ALPHA = 4, 6.0


def attached(seed=0, **fields):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    scaling = fields.pop("scaling", "standard")
    method = build("dylora", shared={"rank": R, "alpha": ALPHA, "scaling": scaling}, own=fields)
    return method, model, lorax.attach(model, method, seed=seed)


def data(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(12, 6, generator=g, dtype=torch.float64), torch.randn(12, 5, generator=g, dtype=torch.float64)


def shake(adapters):
    with torch.no_grad():
        for value in adapters.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).to(value))


def take(rule, adapters, model, optimiser, index, generator):
    """One step; returns the rank that was drawn."""
    step = Step(index, 20, generator)
    rule.before_forward(step, adapters)
    x, y = data(index)
    (model(x) - y).square().mean().backward()
    rule.after_backward(step, adapters)
    optimiser.step()
    with torch.no_grad():
        rule.after_update(step, adapters)
    optimiser.zero_grad()
    return rule.b


@pytest.mark.parametrize("scaling", ["standard", "rslora"])
@pytest.mark.parametrize("b", range(1, R + 1))
def test_a_truncation_is_the_lora_of_that_rank(b, scaling):
    method, model, adapters = attached(scaling=scaling)
    shake(adapters)
    eta = ALPHA / b if scaling == "standard" else ALPHA / b**0.5
    with at_rank(adapters, b):
        for name, delta in adapters.delta().items():
            B, A = (adapters.layer_adapters()[name].current(letter) for letter in "BA")
            torch.testing.assert_close(delta.double(), eta * B[:, :b] @ A[:b], rtol=1e-6, atol=1e-7)
        model(data()[0]).square().sum().backward()
    for name, value in adapters.named_parameters().items():
        beyond = value.grad[b:] if name.endswith("A") else value.grad[:, b:]
        assert float(beyond.abs().sum()) == 0
    assert all(bool((adapter.M == 1).all()) for adapter in adapters.layer_adapters().values())


def test_the_whole_rank_is_lora_bit_for_bit():
    method, model, adapters = attached(ranks=[R])
    rule, optimiser = method.rule(), torch.optim.AdamW(adapters.parameters(), lr=1e-2)
    for index in range(5):
        take(rule, adapters, model, optimiser, index, torch.Generator())
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    lora = lorax.attach(plain, "lora", rank=R, alpha=ALPHA)
    optimiser = torch.optim.AdamW(lora.parameters(), lr=1e-2)
    for index in range(5):
        x, y = data(index)
        (plain(x) - y).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    for a, b in zip(adapters.parameters(), lora.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


def test_each_rank_is_drawn_alike_and_by_the_seed():
    method, model, adapters = attached()
    rule, step = method.rule(), Step(0, 1, torch.Generator().manual_seed(3))
    draws = []
    for _ in range(400):
        rule.before_forward(step, adapters)
        draws.append(rule.b)
    counts = [draws.count(b) for b in range(1, R + 1)]
    assert min(counts) > 70 and sum(counts) == 400
    again, step = method.rule(), Step(0, 1, torch.Generator().manual_seed(3))
    again.before_forward(step, adapters)
    assert again.b == draws[0]


@pytest.mark.parametrize("variant", ["nested", "frozen", "strict"])
def test_what_a_variant_moves(variant):
    method, model, adapters = attached(variant=variant, ranks=[2, 3])
    rule, optimiser = method.rule(), torch.optim.AdamW(adapters.parameters(), lr=1e-2, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for index in range(4):  # some steps first, so that Adam has moments
        take(rule, adapters, model, optimiser, index, generator)
    before = {name: value.detach().clone() for name, value in adapters.named_parameters().items()}
    b = take(rule, adapters, model, optimiser, 4, generator)
    for name, value in adapters.named_parameters().items():
        change = (value - before[name]).detach().abs()
        change = change.sum(1) if name.endswith("A") else change.sum(0)
        others = [float(part) for place, part in enumerate(change) if place != b - 1]
        assert float(change[b - 1]) > 0
        assert (max(others) == 0) == (variant == "strict")


@pytest.mark.parametrize(
    "fields,line",
    [
        ({"variant": "both"}, "variant=both is unknown"),
        ({"ranks": [0, 2]}, "a list of whole numbers from 1 to rank=4"),
        ({"ranks": 3}, "ranks=3: a list"),
    ],
)
def test_bad_input_is_one_clear_line(fields, line):
    with pytest.raises(UserError, match=line):
        attached(**fields)


def test_a_rank_beyond_the_stored_one_is_refused():
    with pytest.raises(UserError, match="rank 5: between 1 and 4"), at_rank(attached()[2], 5):
        pass
    lora = lorax.attach(nn.Sequential(nn.Linear(6, 8)), "lora", rank=2)
    with pytest.raises(UserError, match="unmerged adapters of init=dylora"), at_rank(lora, 1):
        pass


def test_the_ranks_up_to_the_whole_one_are_the_default():
    assert consumed(build("dylora", own={"ranks": list(range(1, 9))})) == consumed(build("dylora"))
