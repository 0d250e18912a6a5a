"""Rows that name their lane: many adapters in one batch, and the base beside them."""

import pytest
import torch

from lorax.adapters.install import find_targets, install
from lorax.errors import UserError

KINDS = ["lora", "pissa", "svft", "adalora"]


@pytest.fixture
def pack(net, make, shake):
    model = net()
    lanes = install(model, [make(kind, find_targets(model), seed) for seed, kind in enumerate(KINDS)])
    for seed, lane in enumerate(lanes):
        shake(lane, seed=seed)
    return model, lanes


def test_each_row_gets_its_own_adapter_and_no_weight_is_written(pack):
    model, lanes = pack
    x = torch.randn(10, 3, 6, dtype=torch.float64)
    routing = torch.tensor([2, -1, 0, 3, 1, 0, 2, -1, 3, 3])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with lanes[0].pack.routed(routing):
        y = model(x)
        other = model(x.flip(0))
    for row, lane in enumerate(routing.tolist()):
        with lanes[0].pack.active([max(lane, 0)]):
            if lane >= 0:
                expected = model(x[row : row + 1])
            else:
                with lanes[0].disabled():
                    expected = model(x[row : row + 1])
        torch.testing.assert_close(y[row : row + 1], expected, rtol=1e-10, atol=1e-11)
    assert not torch.allclose(other.flip(0), y)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_gradients_reach_the_routed_lanes_only(pack):
    model, lanes = pack
    with lanes[0].pack.routed(torch.tensor([1, 1, -1])):
        model(torch.randn(3, 6, dtype=torch.float64)).sum().backward()
    reached = [any(p.grad is not None and bool(p.grad.abs().sum()) for p in lane.parameters()) for lane in lanes]
    assert reached == [False, True, False, False]


def test_equal_blocks_come_back_after_it(pack):
    model, lanes = pack
    x = torch.randn(8, 6, dtype=torch.float64)
    before = model(x)
    with lanes[0].pack.routed(torch.arange(4).repeat_interleave(2)):
        torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-11)
    assert torch.equal(model(x), before)


def test_a_merged_or_folded_weight_is_no_base_to_route_past(net, make):
    x, routing = torch.randn(3, 6, dtype=torch.float64), torch.tensor([0, -1, 0])
    for recenter, merge in (("fold", False), ("carry", True)):
        model = net()
        adapters = install(model, make("pissa", find_targets(model)), recenter=recenter)
        if merge:
            adapters.merge()
        with pytest.raises(UserError, match="up: rows cannot be routed past"), adapters.pack.routed(routing):
            model(x)


def test_what_cannot_be_routed_is_one_line(pack):
    model, lanes = pack
    with pytest.raises(UserError, match="which are not active"), lanes[0].pack.routed(torch.tensor([0, 1])):
        with lanes[0].pack.active([2]):
            model(torch.randn(2, 6, dtype=torch.float64))
    with pytest.raises(UserError, match=r"a tensor of shape \(rows,\)"):
        lanes[0].pack.routed([0, 1]).__enter__()
    with pytest.raises(UserError, match=r"lanes \[4\]: choose among \[-1, 0, 1, 2, 3\]"):
        lanes[0].pack.routed(torch.tensor([4])).__enter__()
    with pytest.raises(UserError, match="3 rows, but 2 are routed"), lanes[0].pack.routed(torch.tensor([0, 1])):
        model(torch.randn(3, 6, dtype=torch.float64))
