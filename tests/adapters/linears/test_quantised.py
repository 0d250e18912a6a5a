"""Adapters on quantised layers are those on the dequantised weights, start at the quantised model, and keep no copy."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from quantised_layers import forms, quantised, stand_ins  # noqa: F401
from torch import nn

import lorax
from lorax.adapters.adapted import reference_mode
from lorax.adapters.install import install
from lorax.adapters.kinds import effective, is_linear, kind_of, shape_of
from lorax.adapters.linears.quantised import QuantisedKind
from lorax.adapters.linears.unfit import unfit
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.initializers.registry import build, get, names
from lorax.probing.fingerprint import remembered
from lorax.probing.probe import Probe

pytestmark = pytest.mark.usefixtures("stand_ins")
LINEAR = [name for name in names() if get(name).has_factors and get(name).adapts == "linear"]


def model(form=None, seed=0):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 16, bias=False), nn.Tanh(), nn.Linear(16, 8))
    return made if form is None else quantised(made, form)


def twin(base):
    """The same layers with the dequantised weights in plain layers."""
    made = model()
    with torch.no_grad():
        for place in (0, 2, 4):
            made[place].weight.copy_(effective(base[place]))
    return made


def batch(rows=12, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 32, generator=g), torch.randn(rows, 8, generator=g)


def loss(net, given):
    return F.mse_loss(net(given[0]), given[1])


def train(net, adapters, steps=4, rate=0.05):
    curve = []
    optimiser = torch.optim.SGD(adapters.parameters(), lr=rate)
    for step in range(steps):
        value = loss(net, batch(seed=step))
        curve.append(float(value.detach()))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return curve


def attach(net, init, **fields):
    return lorax.attach(net, init, rank=2, batches=[batch()], loss=loss, train_head=False, **fields)


@pytest.mark.parametrize("init", ["lora", "pissa", "lora_ga", "svft"])
@pytest.mark.parametrize("form", forms(slow=["stand_in_4bit"]))
def test_training_is_that_on_the_dequantised_weights(form, init):
    base = model(form)
    plain, x = twin(base), batch(seed=9)[0]
    curves, outputs, changes = [], [], []
    for net in (base, plain):
        adapters = attach(net, init)
        curves.append(train(net, adapters))
        outputs.append(net(x).detach())
        changes.append(adapters.delta())
    assert curves[0][-1] != curves[0][0]
    if (form, init) == ("bnb_8bit", "lora_ga"):  # its gradients are of the evaluation mode, where inputs are rounded
        return torch.testing.assert_close(curves[0], curves[1], rtol=2e-2, atol=0)
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    for name, change in changes[0].items():
        torch.testing.assert_close(change, changes[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", LINEAR)
@pytest.mark.parametrize("form", forms(slow=["stand_in_4bit"]))
def test_step_0_is_the_quantised_model_bit_for_bit(form, init):
    base, (x, _) = model(form), batch()
    before, taken = base(x), x.clone().requires_grad_()
    adapters = attach(base, init)
    if build(init, shared={"rank": 2}, own={}).starts_at_base:
        assert torch.equal(base(x), before)
        assert torch.equal(base(taken), before)
    base(taken).sum().backward()
    assert float(taken.grad.abs().max()) > 0 and all(p.grad is not None for p in adapters.parameters())
    assert torch.equal(adapters.detach()(x), before)


@pytest.mark.parametrize("form", forms())
def test_a_layer_runs_in_its_own_mode_and_is_not_repacked(form):
    base, (x, _) = model(form), batch()
    in_training = base(x)
    repacked = "4bit" in form
    own = in_training if repacked else base.eval()(x)
    assert torch.equal(own, in_training) != (form == "bnb_8bit")  # which rounds its inputs on a CPU in evaluation mode
    weights = [effective(base[place]) for place in (0, 2, 4)]
    attach(base, "pissa")
    assert torch.equal(base.eval()(x), own) and torch.equal(base.train()(x), in_training)
    for place, weight in zip((0, 2, 4), weights, strict=True):
        assert torch.equal(effective(base[place]), weight)


@pytest.mark.quantised
@pytest.mark.parametrize("nested", [True, False])
def test_a_layer_that_was_repacked_before_stays_so_and_is_read_right(nested):
    """On a CPU without bf16 products bitsandbytes repacks nothing."""
    import bitsandbytes as bnb

    layer, x = bnb.nn.Linear4bit(128, 64, compress_statistics=nested, quant_type="nf4"), torch.randn(5, 128)
    layer.load_state_dict(nn.Linear(128, 64).state_dict())
    before = effective(layer.to("cpu"))
    with torch.no_grad():
        y = layer.eval()(x)
    weight = effective(layer)
    torch.testing.assert_close(weight, before, rtol=2**-8, atol=1e-7)  # the scales are rounded to bf16
    base = nn.Sequential(layer)
    adapters = lorax.attach(base, "pissa", rank=4, train_head=False)
    assert torch.equal(base(x), y) and torch.equal(effective(base[0]), weight)
    taken = x.clone().requires_grad_()
    base(taken).sum().backward()
    torch.testing.assert_close(taken.grad, weight.sum(0).expand_as(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(adapters.detach()(x), y)


@pytest.mark.parametrize("form", forms(slow=["stand_in_4bit"]))
def test_packed_lanes_equal_single_ones(form):
    kinds = ["lora", "pissa", "milora", "lora_xs"]

    def plans(net, init):
        return make_factors(net, build(init, shared={"rank": 2}, own={}), targets=["0", "2"])

    packed = model(form)
    lanes = install(packed, [plans(packed, init) for init in kinds])
    x, y = batch()
    (packed(x.repeat(len(kinds), 1)) - y.repeat(len(kinds), 1)).square().sum().backward()
    for lane, init in zip(lanes, kinds, strict=True):
        single = model(form)
        adapters = install(single, plans(single, init))
        (single(x) - y).square().sum().backward()
        for name, parameter in adapters.named_parameters().items():
            torch.testing.assert_close(lane.named_parameters()[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", forms(slow=["stand_in_4bit"]))
def test_the_fast_path_equals_plain_operations(form):
    results = []
    for slow in (False, True):
        base = model(form)
        adapters = attach(base, "pissa")
        x = batch()[0].requires_grad_()
        with reference_mode(slow):
            base(x).square().sum().backward()
        results.append([x.grad, *(p.grad for p in adapters.parameters())])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", forms())
def test_nothing_is_written_into_a_quantised_weight(form, tmp_path):
    base = model(form)
    before = base(batch()[0])
    with pytest.raises(UserError, match=r"cannot fold into 0: its weight is quantised \(.+\).*recenter='carry'"):
        attach(base, "pissa", recenter="fold")
    adapters = attach(base, "lora")
    with pytest.raises(UserError, match=r"cannot merge 0: its weight is quantised \(.+\) and cannot be written"):
        adapters.merge()
    with pytest.raises(UserError, match="cannot merge 0"):
        adapters.export_merged(tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and torch.equal(adapters.detach()(batch()[0]), before)
    with pytest.raises(UserError, match="quantised"):
        lorax.attach(base, "full")


@pytest.mark.parametrize("form", forms(slow=["stand_in_4bit"]))
@pytest.mark.parametrize("init", ["lora", "pissa", "lora_ga", "dora"])
def test_a_dequantised_weight_is_freed_at_once(form, init, monkeypatch):
    base, made, most = model(form), [], []

    def dequantised(kind, module, own=QuantisedKind.weight):
        most.append(sum(one() is not None for one in made))
        made.append(weakref.ref(matrix := own(kind, module)))
        return matrix

    monkeypatch.setattr(QuantisedKind, "weight", dequantised)
    adapters = attach(base, init, targets=["0", "2"])
    train(base, adapters, steps=2)
    base(batch()[0])
    assert made and not [one for one in made if one() is not None] and max(most) <= 1


@pytest.mark.parametrize("form", forms())
def test_no_float_copy_waits_for_the_backward_pass(form):
    base = model(form)
    attach(base, "pissa", targets=["0"])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        value = loss(base, batch())
    shapes = {shape_of(base[place]) for place in (0, 2, 4)}
    assert kept and not {*shapes, *(shape[::-1] for shape in shapes)} & set(kept)
    value.backward()


@pytest.mark.parametrize("form", forms())
def test_digests_tell_the_quantised_weight_from_the_plain_one(form):
    plain, base = model(), model(form)
    first, second = (Probe("0", net[0])._digest for net in (plain, base))
    assert first != second and second == Probe("0", base[0])._digest == Probe("0", model(form)[0])._digest
    assert Probe("0", model(form, seed=1)[0])._digest != second
    assert second.split()[0] == remembered(effective(base[0]))  # decompositions are those of the dequantised weight


@pytest.mark.parametrize("form", forms())
def test_a_quantised_layer_says_what_it_is(form):
    base = model(form)
    assert is_linear(base[0]) and unfit(base[0]) is None and shape_of(base[0]) == (24, 32)
    kind = kind_of(base[0])
    assert not kind.writable and kind.plain and kind.weight(base[0]).dtype == torch.float32
    x = batch()[0]
    torch.testing.assert_close(base[0](x), F.linear(x, effective(base[0]), base[0].bias), rtol=0, atol=1e-5)
