"""Adapters at sites that are no weight: any submodule with one tensor in and out, and other layer adapters."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import lorax
from lorax.adapters.install import install
from lorax.adapters.layer_adapter import LayerAdapter
from lorax.errors import UserError


class _Bottleneck(LayerAdapter):
    """y + f(y D^T) U^T: Pfeiffer's adapter, which reads the site's output and is no change of a weight."""

    def __init__(self, down, up, dropout):
        super().__init__(dropout)
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    def output(self, x, base, weight, mask):
        rows = base if mask is None else base * mask
        return base + torch.relu(rows @ self.down.to(base.dtype).mT) @ self.up.to(base.dtype).mT

    def describe(self):
        return {"plan": "bottleneck_for_this_test", "report": {}}


@dataclass(frozen=True)
class _Plan:
    down: torch.Tensor
    up: torch.Tensor
    shifts_base = False

    def check_module(self, name, module):
        pass

    def count_trainable(self):
        return self.down.numel() + self.up.numel()

    def to(self, dtype, device=None):
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))

    def build(self, *, fold=False, dropout=0.0, share=None):
        return _Bottleneck(self.down.clone(), self.up.clone(), dropout)


class _MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.register_buffer("offset", torch.ones(6))
        self.width = 8

    def forward(self, x):
        return self.down(torch.tanh(self.up(x))) + self.offset


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mlp, self.head = _MLP(), nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        return self.head(self.mlp(x))


def plan(seed=0, zero=False):
    g = torch.Generator().manual_seed(seed)
    up = torch.zeros(6, 2) if zero else torch.randn(6, 2, generator=g)
    return _Plan(torch.randn(2, 6, generator=g), up)


def x_of(rows=8, seed=0):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(model, x, given):
    y = model.mlp(x)
    y = y + torch.relu(y @ given.down.double().T) @ given.up.double().T
    return model.head(y)


def test_a_block_is_adapted_and_given_back():
    model, x = _Model(), x_of()
    before, keys, base = by_hand(model, x, plan()), list(model.state_dict()), model(x)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    adapters = install(model, {"mlp": plan()})
    torch.testing.assert_close(model(x), before)
    assert [key for key in model.state_dict() if ".lanes." not in key] == keys
    assert adapters.count_trainable() == plan().count_trainable() and model.mlp.width == 8
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in adapters.parameters()}
    model(x).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum()) for p in adapters.parameters())
    with adapters.disabled():
        assert torch.equal(model(x), base)
    adapters.detach()
    assert type(model.mlp) is _MLP and list(model.state_dict()) == keys
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(model(x), base) and all(p.requires_grad for p in model.parameters())


def test_lanes_at_a_block_are_separate_and_dropout_is_the_runs_own():
    model, x = _Model(), x_of()
    first, second = install(model, [{"mlp": plan(0)}, {"mlp": plan(1)}])
    y = model(x)
    first.detach()
    torch.testing.assert_close(y[4:], model(x[4:]))
    second.detach()
    torch.testing.assert_close(y[:4], by_hand(model, x[:4], plan(0)))


def test_a_block_and_a_layer_inside_it(make):
    """A weight inside the site is adapted too, in either order of names."""
    model, x = _Model(), x_of()
    lora = make("svft", {"mlp.up": model.mlp.up})
    shaken = {"mlp.up": replace(lora["mlp.up"], M=replace(lora["mlp.up"].M, values=torch.ones(6)))}
    delta = shaken["mlp.up"].update().double()
    adapters = install(model, {"mlp": plan(), **shaken})
    y = model(x)
    adapters.detach()
    with torch.no_grad():
        model.mlp.up.weight += delta
    torch.testing.assert_close(y, by_hand(model, x, plan()), rtol=1e-6, atol=1e-7)


def test_what_is_no_change_of_a_weight_refuses_to_merge_and_export(tmp_path):
    model = _Model()
    adapters = install(model, {"mlp": plan()})
    with pytest.raises(UserError, match="mlp is an adapted module, not a linear layer"):
        adapters.merge()
    with pytest.raises(UserError, match="mlp: its adapter is no change of the weight"):
        adapters.delta()
    with pytest.raises(UserError, match="cannot export mlp: its adapter has no low-rank form"):
        adapters.export_peft(tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_bottleneck_at_a_linear_layer_runs_and_refuses_to_merge():
    model, x = _Model(), x_of()
    expected = model.head(model.mlp(x))
    adapters = install(model, {"mlp.down": plan(zero=True)})
    assert torch.equal(model(x), expected)
    with pytest.raises(UserError, match="cannot merge mlp.down: its adapter is no change of the weight"):
        adapters.merge()
    assert torch.equal(model(x), expected)


def test_factors_need_a_weight(make):
    model = _Model()
    with pytest.raises(UserError, match="mlp is _MLP, not a linear layer"):
        install(model, {"mlp": make("lora", {"x": nn.Linear(6, 6)})["x"]})


def test_the_blocks_mode_follows_the_model():
    model = _Model()
    block = model.mlp
    install(model, {"mlp": plan()})
    model.eval()
    model(x_of())
    for module in model.modules():
        module.training = True
    model(x_of())
    assert block.training


def test_buffers_that_are_not_stored_stay_so():
    model = _Model()
    model.mlp.register_buffer("cached", torch.ones(2), persistent=False)
    keys = set(model.state_dict())
    install(model, {"mlp": plan()})
    assert {key for key in model.state_dict() if ".lanes." not in key} == keys


def test_a_block_called_with_more_than_one_tensor_says_so():
    model = _Model()
    install(model, {"mlp": plan()})
    with pytest.raises(UserError, match="mlp ._MLP. is called with more than one tensor"):
        model.mlp(x_of(), x_of())


def test_a_method_may_adapt_modules(scratch_methods):
    """`adapts="module"`: targets name submodules, `plan` returns what stands there, the seed draws it."""
    from lorax.initializers.base import Method

    @lorax.register("bottleneck_for_this_test")
    @dataclass(frozen=True, kw_only=True)
    class Bottleneck(Method):
        adapts = "module"
        width: int = 2

        def plan(self, name, module, generator):
            n = module.down.out_features
            return _Plan(torch.randn(self.width, n, generator=generator), torch.zeros(n, self.width))

    model, x = _Model(), x_of()
    base = model(x)
    adapters = lorax.attach(model, Bottleneck(width=3), targets=["mlp"], seed=1)
    assert adapters.names() == ["mlp"] and adapters.count_trainable() == 36 and torch.equal(model(x), base)
    first = next(iter(adapters.parameters())).detach().clone()
    adapters.detach()
    again = lorax.attach(model, Bottleneck(width=3), targets=["mlp"], seed=1)
    assert torch.equal(first, next(iter(again.parameters())))
    again.detach()
    with pytest.raises(UserError, match="this method adapts whole modules; name them"):
        lorax.attach(model, Bottleneck())


def test_it_is_saved_and_loaded(tmp_path, monkeypatch):
    from lorax.adapters.files import plans

    model, x = _Model(), x_of()
    adapters = install(model, {"mlp": plan()}, dropout=0.25)
    expected = model.eval()(x)
    adapters.save(tmp_path, quiet=True)
    adapters.detach()
    with pytest.raises(UserError, match="of the kind 'bottleneck_for_this_test', which is not known here"):
        lorax.load(model, tmp_path)
    monkeypatch.setattr(plans, "_PLANS", dict(plans._PLANS))
    plans.register_plan("bottleneck_for_this_test", lambda said, tensors: _Plan(tensors["down"], tensors["up"]))
    assert lorax.load(model, tmp_path).dropout == 0.25
    torch.testing.assert_close(model.eval()(x), expected)
    other = _Model()
    other.mlp.down.weight.data[0, 0] += 1
    with pytest.raises(UserError, match="trained on mlp with digest .*, this model has .*: other weights"):
        lorax.load(other, tmp_path)


def test_a_part_of_the_module_that_was_trained_is_no_other_base(tmp_path, monkeypatch):
    from lorax.adapters.files import plans

    model, x = _Model(), x_of()
    adapters = install(model, {"mlp": plan()})
    model.mlp.down.bias.requires_grad_(True).data.add_(1)
    expected = model.eval()(x)
    adapters.save(tmp_path, quiet=True)
    monkeypatch.setattr(plans, "_PLANS", dict(plans._PLANS))
    plans.register_plan("bottleneck_for_this_test", lambda said, tensors: _Plan(tensors["down"], tensors["up"]))
    fresh = _Model()
    lorax.load(fresh, tmp_path)
    torch.testing.assert_close(fresh.eval()(x), expected)
