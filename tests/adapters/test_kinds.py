"""Kinds of layers: a new one is a class that says how its weight is held and applied; nothing else changes."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorax.adapters import kinds
from lorax.adapters.install import find_targets, install
from lorax.adapters.kinds import effective, find_kind, kind_of, shape_of
from lorax.errors import UserError


class _Conv2dKind:
    """`nn.Conv2d` without groups: W is (m, C kh kw), applied to patches."""

    writable = True
    plain = False
    transposed = False

    def __init__(self, module):
        self.size, self.stride, self.padding = module.kernel_size, module.stride, module.padding
        self.stored = module.weight.shape

    def shape(self, module):
        return self.stored[0], self.stored[1:].numel()

    def weight(self, module):
        return self.matrix(module.weight.detach())

    def matrix(self, stored):
        return stored.flatten(1)

    def store(self, matrix):
        return matrix.reshape(self.stored)

    def forward(self, module, x):
        return F.conv2d(x, module.weight, module.bias, self.stride, self.padding)

    def inputs(self, module, x):
        return F.unfold(x, self.size, padding=self.padding, stride=self.stride).mT

    def rows(self, output):
        return output.flatten(2).mT

    def outputs(self, rows, like):
        return rows.mT.reshape(like.shape)


@pytest.fixture
def conv2d(monkeypatch):
    monkeypatch.setattr(kinds, "_KINDS", [])
    kinds.register_kind(lambda module: type(module) is nn.Conv2d and module.groups == 1, _Conv2dKind)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(5, 3, 1)).double()


@pytest.mark.parametrize("kind", ["lora", "pissa", "svft"])
@pytest.mark.parametrize("recenter", ["carry", "fold"])
def test_a_new_kind_is_adapted_merged_and_given_back(conv2d, make, shake, kind, recenter):
    model, x = make_model(), torch.randn(4, 2, 7, 7, dtype=torch.float64)
    base, state = model(x), {key: value.clone() for key, value in model.state_dict().items()}
    targets = find_targets(model)
    assert {name: shape_of(module) for name, module in targets.items()} == {"0": (5, 18), "2": (3, 5)}
    adapters = install(model, make(kind, targets), recenter=recenter)
    torch.testing.assert_close(model(x), base, rtol=1e-10, atol=1e-10)
    shake(adapters)
    y = model(x)
    assert float((y - base).detach().abs().max()) > 1e-3
    y.square().sum().backward()
    assert all(p.grad is not None for p in adapters.parameters())
    W = {name: state[f"{name}.weight"] + d.double().reshape(state[f"{name}.weight"].shape)
         for name, d in adapters.delta().items()}  # fmt: skip
    by_hand = F.conv2d(x, W["0"], state["0.bias"], 2, 1)
    torch.testing.assert_close(y, F.conv2d(by_hand.tanh(), W["2"], state["2.bias"]), rtol=1e-6, atol=1e-6)
    adapters.merge()
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)
    adapters.detach()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert type(model[0]) is nn.Conv2d


def test_two_lanes_on_a_new_kind(conv2d, make, shake):
    model, x = make_model(), torch.randn(4, 2, 7, 7, dtype=torch.float64)
    targets = find_targets(model)
    first, second = install(model, [make("lora", targets, 0), make("pissa", targets, 1)])
    shake(first, seed=2)
    shake(second, seed=3)
    y = model(x)
    first.detach()
    torch.testing.assert_close(y[2:], model(x[2:]))


def test_a_kind_that_cannot_be_written_refuses_fold_and_merge(conv2d, make, monkeypatch):
    monkeypatch.setattr(_Conv2dKind, "writable", False)
    model = make_model()
    adapters = install(model, make("lora", find_targets(model)))
    with pytest.raises(UserError, match="merge 0: its weight is held as _Conv2dKind and cannot be written"):
        adapters.merge()


@pytest.mark.parametrize("module", [nn.Linear(6, 4), Conv1D(4, 6)])
def test_both_built_in_kinds_say_the_matrix_and_the_very_output(module):
    with torch.no_grad():
        module.weight.normal_()
        module.bias.normal_()
    kind, x = kind_of(module), torch.randn(3, 5, 6)
    assert kind.shape(module) == tuple(effective(module).shape) == (4, 6)
    assert torch.equal(kind.forward(module, x), module(x))
    torch.testing.assert_close(module(x), x @ kind.weight(module).mT + module.bias)
    assert torch.equal(kind.store(kind.weight(module)), module.weight)


def test_a_module_of_no_kind():
    assert find_kind(nn.LayerNorm(3)) is None
    with pytest.raises(UserError, match="LayerNorm is not a linear layer"):
        kind_of(nn.LayerNorm(3))
