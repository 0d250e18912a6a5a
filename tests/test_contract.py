"""One contract over every registered adapter: step 0 is the base, the declared tensors train, counts hold."""

from itertools import combinations, product

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import lorax
from lorax.initializers.registry import build, get, names

LINEAR = [name for name in names() if get(name).has_factors and get(name).adapts == "linear"]
METHODS = [(name, {}) for name in LINEAR]
METHODS += [
    ("lora", {"distribution": "gaussian", "scaling": "rslora"}),
    ("lora_ga", {"direction": "random", "gamma": 16.0}),
    ("lora_ga", {"direction": "ArBr", "zeta_rule": "weight_svd"}),
    ("pissa", {"svd": "randomised", "alpha": 3.0}),
    ("svft", {"pattern": "banded", "width": 1}),
    ("svft", {"pattern": "random", "width": 1}),
    ("svft", {"pattern": "top_k", "width": 1}),
    ("svf", {"param": "sigmoid", "normalise": True}),
    ("corda", {"mode": "kpm"}),
]
SHAPES = {"square": (16, 16), "wide": (12, 24), "tall": (24, 12)}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
STEP0 = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of fold
FORWARD = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}  # delta is fp32


def module(layout, m, n, bias, dtype):
    torch.manual_seed(0)
    made = nn.Linear(n, m, bias=bias) if layout == "linear" else Conv1D(m, n)
    with torch.no_grad():
        made.weight.normal_(0, n**-0.5)
    return nn.ModuleDict({"layer": made}).to(dtype)


def loss(model, batch):
    return (model["layer"](batch).float() - 1).square().mean()


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def in_short(method, dtype, layout, shape, recenter):
    """Whether the default tier has a combination, given by its places in the lists of choices."""
    return (dtype + layout + shape + method) % 2 == 0 and (dtype // 2 + shape + recenter + method) % 2 == 0


def test_every_pair_of_choices_is_in_the_default_tier():
    sizes = (4, 2, 3, 2)
    for method in range(2):
        kept = [places for places in product(*map(range, sizes)) if in_short(method, *places)]
        for one, other in combinations(range(4), 2):
            assert len({(places[one], places[other]) for places in kept}) == sizes[one] * sizes[other]


def grid():
    """A quarter of the combinations, in which every pair of choices occurs, and in the slow tier the others."""
    for i, (name, fields) in enumerate(METHODS):
        choices = (DTYPES, ("linear", "conv1d"), SHAPES, ("carry", "fold"))
        for places in product(*(range(len(choice)) for choice in choices)):
            dtype, layout, shape, recenter = (list(choice)[at] for choice, at in zip(choices, places, strict=True))
            marks = () if in_short(i, *places) else pytest.mark.slow
            label = f"{name}-{len(fields)}{i}-{dtype}-{layout}-{shape}-{recenter}"
            yield pytest.param(name, fields, dtype, layout, shape, recenter, marks=marks, id=label)


@pytest.mark.parametrize("name,fields,dtype,layout,shape,recenter", grid())
def test_contract(name, fields, dtype, layout, shape, recenter):
    m, n = SHAPES[shape]
    if fields.get("pattern") == "top_k" and m != n:
        with pytest.raises(lorax.UserError, match="top_k"):
            build(name, own=fields).check("layer", m, n)
        return
    model = module(layout, m, n, shape == "wide", dtype)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(32, n, generator=torch.Generator().manual_seed(1)).to(dtype)
    base = model["layer"](x).detach()
    adapters = lorax.attach(model, init=name, rank=3, recenter=recenter, loss=loss, batches=[x], **fields)

    # step 0 is the pretrained output: exact under carry, within the weight's rounding under fold, unless declared
    used = {key: value for key, value in fields.items() if key not in ("loss", "batches")}
    shared = {key: used.pop(key) for key in list(used) if key in ("alpha", "scaling", "zeta_rule", "gamma")}
    initializer = build(name, shared={"rank": 3} | shared, own=used)
    start = model["layer"](x).detach()
    if not initializer.starts_at_base:
        assert float(adapters.delta()["layer"].norm()) > 0
    else:
        assert torch.equal(start, base) if recenter == "carry" else relative(start, base) < STEP0[dtype]

    # exactly the declared tensors train, as many as the formula says, in float32 or better
    assert adapters.count_trainable() == initializer.count(m, n)
    trained = adapters.parameters()
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(p.dtype == wide for p in trained)

    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimiser = torch.optim.SGD(trained, lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        loss(model, x).backward()
        assert all(p.grad is not None for p in trained)
        optimiser.step()
    named = {id(p): key for key, p in model.named_parameters()}
    moving = {named[id(p)] for p in trained}
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key not in moving)
    assert any(not torch.equal(before[key], after[key]) for key in moving)

    out = model["layer"](x).detach()
    with adapters.disabled():
        assert relative(model["layer"](x).detach(), base) <= (0 if recenter == "carry" else 1e-6)
    if initializer.changes_weight:
        is_the_merged(model, adapters, state, x, out, dtype, layout)
    else:
        with pytest.raises(lorax.UserError, match="cannot merge layer: its adapter is no change of the weight"):
            adapters.merge()
        assert torch.equal(model["layer"](x).detach(), out) and relative(out, base) > 0

    # detach leaves no trace
    adapters.detach()
    left = model.state_dict()
    assert left.keys() == state.keys() and all(torch.equal(left[key], state[key]) for key in state)
    assert type(model["layer"]) is (nn.Linear if layout == "linear" else Conv1D)
    assert all(p.requires_grad for p in model.parameters())


def is_the_merged(model, adapters, state, x, out, dtype, layout):
    """The forward is x (W0 + delta)^T + b, also when merged."""
    m = len(out[0])
    W0 = state["layer.weight"].double()
    W0 = W0.T if layout == "conv1d" else W0
    bias = state.get("layer.bias", torch.zeros(m)).double()
    delta = adapters.delta()["layer"].double()
    assert float(delta.norm()) > 0
    assert relative(out, x.double() @ (W0 + delta).T + bias) < FORWARD[dtype]
    adapters.merge()
    assert relative(model["layer"](x).detach(), out) < FORWARD[dtype]
    adapters.unmerge()
    assert torch.equal(model["layer"](x).detach(), out)


@pytest.mark.parametrize("name", LINEAR)
def test_the_same_seed_gives_the_same_factors_whatever_else_is_adapted(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 12))
    x = torch.randn(8, 20)

    def go(targets):
        def loss(model, batch):
            return model(batch).square().mean()

        adapters = lorax.attach(model, init=name, rank=3, targets=targets, loss=loss, batches=[x])
        state = {key: value.clone() for key, value in adapters.state_dict().items() if key.startswith("2.")}
        adapters.detach()
        return state

    first, second, alone = go("all-linear"), go("all-linear"), go(["2"])
    assert all(torch.equal(first[key], second[key]) and torch.equal(first[key], alone[key]) for key in first)


@pytest.mark.parametrize("name", ["pissa", "milora", "lora_ga", "olora", "orthogonal", "corda"])
def test_carry_and_fold_are_one_trajectory(name):
    def go(recenter):
        model = module("linear", 16, 24, True, torch.float64)
        x = torch.randn(32, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

        def fit(model, batch):
            return (model["layer"](batch) - 1).square().mean()

        adapters = lorax.attach(model, init=name, rank=3, recenter=recenter, loss=fit, batches=[x])
        optimiser = torch.optim.AdamW(adapters.parameters(), lr=1e-3, weight_decay=0.1)
        for _ in range(20):
            optimiser.zero_grad()
            fit(model, x).backward()
            optimiser.step()
        return model["layer"](x).detach()

    assert relative(go("fold"), go("carry")) < 1e-10
