from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from lorax.adapters.adapted import reference_mode
from lorax.adapters.install import find_targets, install
from lorax.errors import UserError

MIXED = ["lora", "pissa", "svft", "xs", "banded", "adalora", "only_a", "svft"]


def lanes_of(net, make, kinds, dtype=torch.float64, **options):
    model = net(dtype)
    targets = find_targets(model)
    sets = [make(kind, targets, seed) for seed, kind in enumerate(kinds)]
    del sets[0]["up"]  # the first lane adapts one layer only
    return model, sets, install(model, sets, **options)


def data(count, dtype=torch.float64):
    g = torch.Generator().manual_seed(5)
    return [torch.randn(4, 3, 6, generator=g, dtype=torch.float64).to(dtype) for _ in range(count)]


def steps(model, lanes, batches, lrs, count=20, autocast=False):
    """AdamW on every lane, each with its own rate; the gradients of lanes do not mix."""
    optimizers = [torch.optim.AdamW(lane.parameters(), lr=lr) for lane, lr in zip(lanes, lrs, strict=True)]
    losses = []
    for _ in range(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(torch.cat(batches))
        each = torch.stack(
            [(part.float() if autocast else part).sub(1).square().mean() for part in y.chunk(len(lanes))]
        )
        each.sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(each.detach())
    return torch.stack(losses)


FP64, FP32 = (torch.float64, 1e-12, 1e-9), (torch.float32, 1e-6, 1e-4)


@pytest.mark.parametrize(
    "form, dropout, tolerance",
    [(nullcontext, 0.0, FP64), (nullcontext, 0.25, FP64), (nullcontext, 0.25, FP32), (reference_mode, 0.25, FP64)],
)
def test_packed_lanes_train_like_separate_models(net, make, form, dropout, tolerance):
    dtype, loss_tol, tensor_tol = tolerance
    drops = [dropout * (k % 3) for k in range(len(MIXED))]
    model, sets, lanes = lanes_of(net, make, MIXED, dtype, dropout=drops)
    batches, lrs = data(len(MIXED), dtype), [1e-2 / (k + 1) for k in range(len(MIXED))]
    for k, lane in enumerate(lanes):
        lane.generator = torch.Generator().manual_seed(k)
    with form():
        together = steps(model, lanes, batches, lrs)
    for k, given in enumerate(sets):
        alone = net(dtype)
        single = install(alone, given, dropout=drops[k])
        single.generator = torch.Generator().manual_seed(k)
        losses = steps(alone, [single], [batches[k]], [lrs[k]])
        torch.testing.assert_close(together[:, k], losses[:, 0], rtol=loss_tol, atol=0)
        for name, value in single.state_dict().items():
            torch.testing.assert_close(
                lanes[k].state_dict()[name], value, rtol=tensor_tol, atol=tensor_tol * value.abs().max().item()
            )


def test_packed_bfloat16_autocast_stays_near(net, make):
    model, sets, lanes = lanes_of(net, make, MIXED, torch.float32)
    batches = data(len(MIXED), torch.float32)
    together = steps(model, lanes, batches, [1e-2] * len(MIXED), autocast=True)
    for k, given in enumerate(sets):
        alone = net(torch.float32)
        losses = steps(alone, [install(alone, given)], [batches[k]], [1e-2], autocast=True)
        torch.testing.assert_close(together[:, k], losses[:, 0], rtol=2e-2, atol=1e-3)


def test_some_lanes_and_some_switched_off(net, make, shake):
    model, _, lanes = lanes_of(net, make, MIXED)
    for k, lane in enumerate(lanes):
        shake(lane, seed=k)
    batches = data(len(MIXED))
    every = model(torch.cat(batches)).chunk(len(MIXED))
    base = net()
    for chosen in ([0, 2], [7, 2, 4], [5]):
        with lanes[0].pack.active(chosen):
            some = model(torch.cat([batches[k] for k in chosen])).chunk(len(chosen))
        for k, got in zip(chosen, some, strict=True):
            torch.testing.assert_close(got, every[k], rtol=1e-12, atol=1e-12)
    with lanes[2].disabled(), lanes[5].disabled():
        mixed = model(torch.cat(batches)).chunk(len(MIXED))
    for k, got in enumerate(mixed):
        want = base(batches[k]) if k in (2, 5) else every[k]
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for bad in ([], [0, 0], [9]):
        with pytest.raises(UserError, match="active lanes"), lanes[0].pack.active(bad):
            pass


def test_lanes_leave_one_by_one(net, make, shake):
    model, _, lanes = lanes_of(net, make, MIXED[:3])
    before = copy.deepcopy(net().state_dict())
    batches = data(3)
    for k, lane in enumerate(lanes):
        shake(lane, seed=k)
    every = model(torch.cat(batches)).chunk(3)
    with pytest.raises(UserError, match="3 lanes share"):
        lanes[1].merge()
    lanes[1].detach()
    rest = model(torch.cat([batches[0], batches[2]])).chunk(2)
    torch.testing.assert_close(rest, (every[0], every[2]), rtol=1e-12, atol=1e-12)
    lanes[0].detach()
    lanes[2].merge()
    torch.testing.assert_close(model(batches[2]), every[2], rtol=1e-11, atol=1e-12)
    lanes[2].detach()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_frozen_factors_are_stored_once(net, make):
    model, _, lanes = lanes_of(net, make, ["lora", "svft", "banded", "svft"])
    for _ in range(2):
        stored = {lane.layer_adapters()["down"].start(name).data_ptr() for lane in lanes[1:] for name in "AB"}
        assert len(stored) == 2
        model.to(torch.float32).to(torch.float64)


def test_rows_must_divide(net, make):
    model, _, _ = lanes_of(net, make, ["lora", "pissa"])
    with pytest.raises(UserError, match="up: 3 rows do not divide into 2 lanes"):
        model(torch.randn(3, 6, dtype=torch.float64))


def test_frozen_factors_keep_the_stack_until_the_block_ends(net, make, shake):
    model, _, lanes = lanes_of(net, make, MIXED)
    batch = torch.cat(data(len(MIXED)))
    with torch.no_grad(), lanes[0].pack.frozen_factors():
        first = model(batch)
        assert torch.equal(model(batch), first)
    for k, lane in enumerate(lanes):
        shake(lane, seed=k)
    want = model(batch)
    with torch.no_grad(), lanes[0].pack.frozen_factors():
        assert torch.equal(model(batch), want) and not torch.equal(want, first)


def test_a_diverged_lane_leaves_the_others_alone(net, make):
    model, _, lanes = lanes_of(net, make, MIXED)
    batches = data(len(MIXED))
    want = model(torch.cat(batches)).chunk(len(MIXED))
    with torch.no_grad():
        lanes[1].parameters()[0].fill_(float("nan"))
    got = model(torch.cat(batches)).chunk(len(MIXED))
    got[1].nan_to_num().sum().backward(retain_graph=True)
    sum(part.sum() for k, part in enumerate(got) if k != 1).backward()
    for k, lane in enumerate(lanes):
        if k != 1:
            torch.testing.assert_close(got[k], want[k], rtol=1e-12, atol=1e-12)
            assert all(p.grad.isfinite().all() for p in lane.parameters())


def test_a_copy_of_the_model_lives_by_itself(net, make, shake):
    model, _, lanes = lanes_of(net, make, ["pissa", "svft"])
    x = torch.cat(data(2))
    want = model(x)
    twin = copy.deepcopy(model)
    shake(lanes[0])
    shake(lanes[1])
    torch.testing.assert_close(twin(x), want, rtol=0, atol=0)
