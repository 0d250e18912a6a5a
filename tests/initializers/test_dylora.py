"""DyLoRA: a truncation is a LoRA of that rank, draws are the run's own, and the variants train what they say."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lorax
from lorax.adapters.face import Step
from lorax.errors import UserError
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
    with adapters.at_rank(b):
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
        ({"ranks": []}, "a list of whole numbers from 1 to rank=4"),
        ({"scored": [5]}, "scored=.5.: a list of whole numbers from 1 to rank=4"),
        ({"scored": "all"}, "scored=all: a list"),
    ],
)
def test_bad_input_is_one_clear_line(fields, line):
    with pytest.raises(UserError, match=line):
        attached(**fields)


@pytest.mark.parametrize("rank", [0, 5, True, 2.0])
def test_a_rank_out_of_bounds_is_refused(rank):
    with pytest.raises(UserError, match=f"rank {rank}: a whole number from 1 to 4"), attached()[2].at_rank(rank):
        pass


def test_only_what_trained_several_ranks_can_be_cut(tmp_path):
    lora = lorax.attach(nn.Sequential(nn.Linear(6, 8)), "lora", rank=2)
    for act in (lambda: lora.at_rank(1), lambda: lora.save(tmp_path / "x", rank=1)):
        with pytest.raises(UserError, match="init=lora trains one rank"):
            act()
    _, _, adapters = attached()
    adapters.merge()
    with pytest.raises(UserError, match="the adapters are merged"), adapters.at_rank(1):
        pass
    assert not (tmp_path / "x").exists()


def test_a_rank_within_a_rank_comes_back():
    _, model, adapters = attached()
    shake(adapters)
    x = data()[0]
    with adapters.at_rank(3):
        at_3 = model(x)
        with pytest.raises(ZeroDivisionError), adapters.at_rank(1):
            assert not torch.equal(model(x), at_3)
            raise ZeroDivisionError
        assert torch.equal(model(x), at_3)


@pytest.mark.parametrize("fields,b", [({}, 2), ({"scaling": "rslora", "ranks": [3]}, 3), ({"ranks": [2, 4]}, 1)])
def test_a_saved_prefix_is_the_adapter_of_that_rank(tmp_path, fields, b):
    _, model, adapters = attached(**fields)
    shake(adapters)
    x = data()[0]
    with adapters.at_rank(b):
        want = model(x)
    with adapters.at_rank(1):
        lower = model(x)
    adapters.save(tmp_path, quiet=True, rank=b)
    loaded = lorax.load(adapters.detach(), tmp_path)
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)
    assert loaded.count_trainable() == b * (6 + 8 + 8 + 5) and loaded.info["init"]["rank"] == b
    if b > 1:
        with loaded.at_rank(1):
            torch.testing.assert_close(model(x), lower, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("b,scaling", [(1, "standard"), (3, "rslora")])
def test_stock_peft_computes_the_exported_prefix(tmp_path, b, scaling):
    import peft

    _, model, adapters = attached(scaling=scaling)
    shake(adapters)
    x = data()[0]
    with adapters.at_rank(b):
        want = model(x)
    report = adapters.export_peft(tmp_path, rank=b, verify=False)
    assert set(report["rank"].values()) == {b} and set(report["error"].values()) == {0.0}
    again = peft.PeftModel.from_pretrained(adapters.detach(), tmp_path)
    torch.testing.assert_close(again(x), want, rtol=1e-12, atol=1e-12)


def test_a_rank_above_the_whole_one_exports_all_of_it(tmp_path):
    _, _, adapters = attached()
    shake(adapters)
    assert set(adapters.export_peft(tmp_path, rank=9, verify=False)["rank"].values()) == {R}


def test_under_adam_frozen_moves_the_rows_without_a_gradient_and_strict_does_not():
    """After one common step a row without a gradient moves 0.0067 of a step of 0.01: the moments go on."""
    for variant, moved in (("frozen", 0.0067), ("strict", 0.0)):
        method, model, adapters = attached(ranks=[1, 2], variant="nested")
        shake(adapters)
        optimiser = torch.optim.Adam(adapters.parameters(), lr=1e-2)
        _step(replace(method, ranks=[2]).rule(), adapters, model, optimiser)
        A = adapters.named_parameters()["0.A"]
        before = A.detach().clone()
        _step(replace(method, ranks=[1], variant=variant).rule(), adapters, model, optimiser)
        change = (A - before).detach().abs()
        assert float(change[0].min()) > 0.005 and float(change[2:].max()) == 0
        torch.testing.assert_close(change[1], torch.full_like(change[1], moved), rtol=0.01, atol=0)


def _step(rule, adapters, model, optimiser):
    take(rule, adapters, model, optimiser, 0, torch.Generator())


def test_the_ranks_up_to_the_whole_one_are_the_default():
    assert consumed(build("dylora", own={"ranks": list(range(1, 9))})) == consumed(build("dylora"))


@pytest.mark.parametrize(
    "rank,fields,scored",
    [(8, {}, (1, 2, 4)), (6, {}, (1, 2, 4)), (8, {"ranks": [3, 8, 5]}, (3, 5)), (8, {"scored": [7, 8]}, (7,)),
     (8, {"scored": []}, ()), (1, {}, ())],
)  # fmt: skip
def test_the_ranks_at_which_a_run_is_scored(rank, fields, scored):
    assert tuple(build("dylora", shared={"rank": rank}, own=fields).rule().scored()) == scored


def test_the_ranks_scored_by_default_are_left_out_of_the_id():
    assert consumed(build("dylora", own={"scored": [1, 2, 4, 8]})) == consumed(build("dylora"))
    assert consumed(build("dylora", own={"scored": []})) != consumed(build("dylora"))
