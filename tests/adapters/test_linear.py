from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorax.adapters.adapted import reference_mode
from lorax.adapters.install import find_targets, install


def adapted(net, make, kind, dtype=torch.float64, **options):
    model = net(dtype)
    return model, install(model, make(kind, find_targets(model)), **options)


def train(model, adapters, x, steps=20, seed=3, lr=1e-2):
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=lr, weight_decay=0.1)
    torch.manual_seed(seed)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fast_form_trains_like_the_reference(net, make, kind, dropout):
    model, adapters = adapted(net, make, kind, dropout=dropout)
    twin = copy.deepcopy(model)
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    fast = train(model, adapters, x)
    with reference_mode():
        slow = train(twin, twin_of(adapters, twin), x)
    torch.testing.assert_close(fast, slow, rtol=1e-11, atol=0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-9, atol=1e-11)
    assert fast[-1] < fast[0]


def twin_of(adapters, model):
    keep = {name for name in model.state_dict() if ".lanes." in name}
    named = dict(model.named_parameters())

    class Twin:
        def parameters(self):
            return [named[name] for name in sorted(keep & named.keys())]

    return Twin()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_are_right(net, make, kind, dropout, shake):
    model, adapters = adapted(net, make, kind, dropout=dropout)
    shake(adapters)

    def run(x, *_):
        torch.manual_seed(7)
        return model.up(x)

    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    own = [p for name, p in adapters.named_parameters().items() if name.startswith("up")]
    assert torch.autograd.gradcheck(run, (x, *own))


@pytest.mark.parametrize("recenter", ["carry", "fold"])
def test_forward_is_the_equation(net, make, kind, shake, recenter):
    model, adapters = adapted(net, make, kind, recenter=recenter)
    W0 = net().up.weight
    shake(adapters)
    x = torch.randn(3, 6, dtype=torch.float64)
    B, M, A, eta = (getattr(adapters.factors()["up"], key) for key in ("B", "M", "A", "eta"))
    from lorax.adapters.core import dense

    update = eta * B @ dense(M, A.shape[0], A) @ A
    want = F.linear(x, adapters.frozen_weight("up") + update, model.up.bias)
    torch.testing.assert_close(model.up(x), want, rtol=1e-11, atol=1e-12)
    delta = adapters.delta(["up"])["up"]
    assert delta.dtype == torch.float32
    torch.testing.assert_close(W0 + delta, adapters.frozen_weight("up") + update, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "layer", [lambda n, m: nn.Linear(n, m), lambda n, m: nn.Linear(n, m, bias=False), lambda n, m: Conv1D(m, n)]
)
@pytest.mark.parametrize("n, m", [(7, 7), (5, 9), (9, 5)])
def test_step_zero_is_the_base_bit_for_bit(make, kind, dtype, layer, n, m):
    torch.manual_seed(0)
    model = nn.Sequential(layer(n, m)).to(dtype)
    x = torch.randn(4, 3, n, dtype=dtype)
    want = model(x)
    install(model, make(kind, find_targets(model)))
    got = model(x)
    if kind == "lora" or kind == "pissa":
        assert torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_carry_equals_fold(net, make):
    x = torch.randn(4, 6, dtype=torch.float64)
    deltas, frozen = [], []
    for recenter in ("carry", "fold"):
        model, adapters = adapted(net, make, "pissa", recenter=recenter)
        train(model, adapters, x)
        deltas.append({name: lane.delta() for name, lane in adapters.layer_adapters().items()})
        frozen.append({name: adapters.frozen_weight(name) for name in adapters.names()})
    for name in ("up", "down"):
        torch.testing.assert_close(deltas[0][name], deltas[1][name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(frozen[0][name], frozen[1][name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fast", [True, False])
def test_small_updates_survive_bfloat16_products(make, fast):
    """||B - B0|| = 1e-3 ||B0||: subtracting two full products would be noise (error above 1)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 96, bias=False))
    factors = make("pissa", find_targets(model))
    with torch.no_grad():
        model[0].weight.zero_()  # so that the output is the adapter's alone
    model.bfloat16()
    adapters = install(model, factors)
    with torch.no_grad():
        for name, change in adapters.named_parameters().items():
            start = adapters.layer_adapters()["0"].start(name[-1])
            step = torch.randn_like(change)
            change.copy_(1e-3 * start.norm() / step.norm() * step)
    x = torch.randn(256, 96).bfloat16()
    want = x.float() @ adapters.delta()["0"].T
    with contextlib.nullcontext() if fast else reference_mode():
        error = (model(x).float() - want).norm() / want.norm()
    assert error <= 1e-2


@pytest.mark.parametrize("recenter", ["carry", "fold"])
def test_only_the_declared_tensors_change(net, make, kind, recenter):
    model, adapters = adapted(net, make, kind, recenter=recenter)
    before = copy.deepcopy(model.state_dict())
    trained = {id(p) for p in adapters.parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in trained}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == names
    assert adapters.count_trainable() == sum(f.count_trainable() for f in adapters.factors().values())
    train(model, adapters, torch.randn(4, 6, dtype=torch.float64), steps=3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in names), name


def test_autocast_casts_the_frozen_weight_once(net, make, shake):
    model, adapters = adapted(net, make, "pissa", torch.float32)
    shake(adapters)
    x = torch.randn(8, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = model.up(x)
        first = model.up.in_dtype("weight", torch.bfloat16)
        model.up(x)
        assert model.up.in_dtype("weight", torch.bfloat16) is first and y.dtype == torch.bfloat16
        with reference_mode():
            torch.testing.assert_close(y, model.up(x), rtol=2e-2, atol=2e-2)
        with torch.no_grad():
            model.up.weight.mul_(2)
        assert torch.equal(model.up.in_dtype("weight", torch.bfloat16), first * 2)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for n, p in adapters.named_parameters().items() if "up" in n)
    assert x.grad.dtype == torch.float32


def test_inference_mode_leaves_nothing_behind(net, make, kind):
    model, adapters = adapted(net, make, kind, torch.float32)
    x = torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode(), adapters.pack.frozen_factors():
            want = model(x)
        y = model(x)
    assert torch.equal(y, want)
    y.float().sum().backward()
    assert all(p.grad is not None for p in adapters.parameters())


def test_model_to_keeps_the_factors_precision(net, make, kind, shake):
    model, adapters = adapted(net, make, kind, torch.float32)
    shake(adapters)
    before = {key: value.clone() for key, value in adapters.state_dict().items()}
    model.to(torch.bfloat16)
    assert model.up.weight.dtype == torch.bfloat16
    for key, value in adapters.state_dict().items():
        assert torch.equal(value, before[key])
    assert model(torch.randn(2, 6).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("recenter", ["carry", "fold"])
def test_merge_gives_the_same_output_and_comes_undone(net, make, kind, shake, dtype, tolerance, recenter):
    model, adapters = adapted(net, make, kind, dtype, recenter=recenter)
    shake(adapters, 0.05)
    stored = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 6).to(dtype)
    y, delta = model(x), adapters.delta()
    adapters.merge().merge()
    torch.testing.assert_close(model(x), y, rtol=tolerance, atol=10 * tolerance)
    assert all(torch.equal(delta[name], adapters.delta()[name]) for name in delta)
    with adapters.disabled():
        assert torch.equal(model(x), net(dtype)(x))
    adapters.unmerge()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_non_contiguous_weight_and_input(make, shake):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9, dtype=torch.float64))
    model[0].weight = nn.Parameter(torch.randn(6, 9, dtype=torch.float64).T)
    x = torch.randn(6, 3, 4, dtype=torch.float64).transpose(0, 2)
    want = model(x)
    adapters = install(model, make("pissa", find_targets(model)))
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)
    shake(adapters)
    y = model(x)
    adapters.merge()
    torch.testing.assert_close(model(x), y, rtol=1e-12, atol=1e-12)
    adapters.detach()
    assert torch.equal(model(x), want)


def test_a_trained_base_gets_its_gradient_too(net, make):
    model, _ = adapted(net, make, "lora")
    model.up.weight.requires_grad_(True)
    model(torch.randn(2, 6, dtype=torch.float64)).sum().backward()
    assert model.up.weight.grad.abs().sum() > 0
