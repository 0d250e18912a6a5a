"""Houlsby's, Pfeiffer's and the parallel adapter: where they stand, what they compute, what they refuse."""

import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from zoo import ZOO

import lorax
from lorax.adapters.adapted import reference_mode
from lorax.adapters.bottleneck.bottleneck import NONLINEARITIES, Bottleneck
from lorax.adapters.core import Identity
from lorax.adapters.factors import Factors
from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.initializers.bottleneck import shared
from lorax.initializers.registry import build

METHODS = ("houlsby", "pfeiffer", "parallel_adapter")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SITES = {
    ("llama_tied", "houlsby"): ["self_attn.o_proj", "mlp.down_proj"],
    ("llama_tied", "pfeiffer"): ["mlp.down_proj"],
    ("llama_tied", "parallel_adapter"): ["mlp"],
    ("gpt2", "houlsby"): ["attn.c_proj", "mlp.c_proj"],
    ("gpt2", "pfeiffer"): ["mlp.c_proj"],
    ("gpt2", "parallel_adapter"): ["mlp"],
    ("bert_cls", "houlsby"): ["attention.output.dense", "output.dense"],
    ("bert_cls", "pfeiffer"): ["output.LayerNorm"],
    ("t5", "houlsby"): ["SelfAttention.o", "DenseReluDense.wo"],
    ("t5", "pfeiffer"): ["DenseReluDense.wo"],
    ("t5", "parallel_adapter"): ["DenseReluDense"],
    ("opt", "houlsby"): ["self_attn.out_proj", "fc2"],
    ("swin", "pfeiffer"): ["mlp.fc2"],
}
BLOCKS = {"t5": 4}
READING = {"input": "parallel_adapter", "output": "houlsby", "norm": "pfeiffer"}


class _Block(nn.Module):
    """A feed-forward part whose input, output and hidden widths differ, and the norm after it."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(6, 10), nn.Linear(10, 8), nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.down(torch.relu(self.up(x))))


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block = _Block()
        self.block.norm.weight.data.normal_()
        self.double()

    def forward(self, x):
        return self.block(x)


def x_of(rows=8, seed=0, dtype=torch.float64):
    return torch.randn(rows, 3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def shaken(adapters, seed=0):
    """Give every trained tensor a value of its own; returns the adapters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))
    return adapters


def attached(model, target, reads="output", seed=0, **fields):
    return shaken(lorax.attach(model, init=READING[reads], rank=3, targets=[target], **fields), seed)


@pytest.mark.parametrize("name, method", SITES, ids=str)
def test_sites_of_an_architecture(name, method):
    """The sites are the paper's, step 0 is the base bit for bit, and the count is r (m + d) + r + m a site."""
    model, batch = ZOO[name]()
    model.eval()
    blocks, width, ends = BLOCKS.get(name, 2), 32, SITES[name, method]
    with torch.no_grad():
        base = model(**batch).logits
        adapters = lorax.attach(model, init=method, rank=4, train_head=False)
        names = adapters.names()
        assert torch.equal(model(**batch).logits, base)
    for end in ends:
        assert sum(re.search(rf"\.\d+\.{re.escape(end)}$", each) is not None for each in names) == blocks
    assert len(names) == blocks * len(ends)
    if name != "swin":  # whose stages have widths of their own
        assert adapters.count_trainable() == len(names) * (4 * 2 * width + 4 + width)
    adapters.detach()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["mixtral", "jetmoe", "mamba"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_sites_says_so_in_one_line(name, method):
    model, _ = ZOO[name]()
    with pytest.raises(UserError, match=f"init={method}: {type(model).__name__} has no .* that is known") as caught:
        lorax.attach(model, init=method, rank=4)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target, reads", [("down", "output"), ("block", "input"), ("norm", "norm"), ("up", "output")])
def test_contract(target, reads, dtype):
    """Step 0 is the base exactly, what is declared trains in float32 or better, detaching leaves no trace."""
    model, x = _Model().to(dtype), x_of(dtype=dtype)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    base = model(x).detach()
    adapters = lorax.attach(model, init=READING[reads], rank=3, targets=[target])
    assert torch.equal(model(x), base)
    method = build(READING[reads], shared={"rank": 3})
    m, d = {"down": (8, 8), "block": (8, 6), "norm": (8, 8), "up": (10, 10)}[target]
    assert adapters.count_trainable() == method.count(m, d) == 3 * (m + d) + 3 + m
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(p.dtype == wide for p in adapters.parameters())
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in adapters.parameters()}
    optimiser = torch.optim.SGD(adapters.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(x).float().square().sum().backward()
        optimiser.step()
    assert all(bool(p.grad.abs().sum()) for p in adapters.parameters())
    assert not torch.equal(model(x), base)
    with adapters.disabled():
        assert torch.equal(model(x), base)
    adapters.detach()
    left = model.state_dict()
    assert left.keys() == state.keys() and all(torch.equal(left[key], state[key]) for key in state)


def by_hand(model, x, reads, adapter, f):
    """The block's output by the head of `bottleneck.py`, in plain operations."""
    block, A, a, B, b, s = model.block, adapter.A, adapter.a, adapter.B, adapter.b, adapter.scale
    z = block.down(torch.relu(block.up(x)))
    if reads == "norm":
        return block.norm(z + s * (f(block.norm(z) @ A.T + a) @ B.T + b))
    if reads == "input":
        return block.norm(z) + s * (f(x @ A.T + a) @ B.T + b)
    return block.norm(z + s * (f(z @ A.T + a) @ B.T + b))


@pytest.mark.parametrize("f", NONLINEARITIES)
@pytest.mark.parametrize("target, reads", [("down", "output"), ("block", "input"), ("norm", "norm")])
def test_the_equation(target, reads, f):
    model, x = _Model(), x_of()
    adapters = attached(model, target, reads, nonlinearity=f, scale=1.7)
    y, adapter = model(x), next(iter(adapters.layer_adapters().values()))
    adapters.detach()
    torch.testing.assert_close(y, by_hand(model, x, reads, adapter, NONLINEARITIES[f]), rtol=0, atol=1e-12)


def test_identity_beside_a_layer_is_a_lora_of_the_same_rank():
    """reads="input": y = W x + s B A x, eta = s. reads="output", no bias in W: z + s B A W x."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False)).double()
    x, W = x_of(), model[0].weight
    for init, of_input in (("parallel_adapter", lambda A: A), ("houlsby", lambda A: A @ W)):
        adapters = shaken(
            lorax.attach(model, init=init, rank=3, targets=["0"], nonlinearity="identity", bias=False, scale=1.7)
        )
        y, adapter = model(x), adapters.layer_adapter("0")
        A, B = adapter.A.detach(), adapter.B.detach()
        adapters.detach()
        lora = install(model, {"0": Factors(B, Identity(), of_input(A).detach(), 1.7, frozenset({"A", "B"}))})
        torch.testing.assert_close(y, model(x), rtol=0, atol=1e-12)
        lora.detach()


def test_gradients_are_those_of_the_equation():
    model, x = _Model(), x_of()
    for target, reads in (("down", "output"), ("block", "input"), ("norm", "norm")):
        adapters = attached(model, target, reads, nonlinearity="tanh")
        adapter = next(iter(adapters.layer_adapters().values()))
        model(x).square().sum().backward()
        ours = [p.grad.clone() for p in adapters.parameters()]
        adapters.detach()
        loss = by_hand(model, x, reads, adapter, torch.tanh).square().sum()
        for a, b in zip(ours, torch.autograd.grad(loss, list(adapter.trained().values())), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_lanes_of_a_pack_equal_runs_alone(dropout):
    """Two ranks and two kinds of site in one pack, dropout masks included."""
    model, x = _Model(), x_of(4)

    def plans(init, target, rank, seed):
        made = make_factors(model, build(init, shared={"rank": rank}), [target], seed=seed)
        return {name: plan_of(plan, seed) for name, plan in made.items()}

    def plan_of(plan, seed):
        g = torch.Generator().manual_seed(seed)
        return Bottleneck(plan.A, torch.randn(plan.B.shape, generator=g, dtype=torch.float64), plan.a, plan.b,
                          plan.nonlinearity, plan.scale, plan.reads)  # fmt: skip

    given = [plans("houlsby", "down", 3, 1), plans("pfeiffer", "norm", 2, 2), plans("parallel_adapter", "block", 4, 3)]
    alone = []
    for lane, plan in enumerate(given):
        adapters = install(model, plan, dropout=dropout)
        adapters.generator = torch.Generator().manual_seed(lane)
        adapters.train()
        alone.append(model(x))
        adapters.detach()
    pack = install(model, given, dropout=dropout)
    for lane, adapters in enumerate(pack):
        adapters.generator = torch.Generator().manual_seed(lane)
        adapters.train()
    torch.testing.assert_close(model(torch.cat([x] * 3)), torch.cat(alone), rtol=0, atol=1e-12)
    for adapters in pack:
        adapters.detach()


def test_rows_may_be_routed():
    model, x = _Model(), x_of(3)
    pack = install(model, [make_factors(model, build("houlsby"), ["down"], seed=k) for k in (0, 1)])
    shaken(pack[0], 1), shaken(pack[1], 2)
    with pack[0].pack.routed(torch.tensor([1, -1, 0])):
        y = model(x)
    for row, lane in ((0, 1), (2, 0)):
        with pack[0].pack.active([lane]):
            torch.testing.assert_close(y[row], model(x[row : row + 1])[0], rtol=0, atol=1e-12)
    with pack[0].disabled(), pack[0].pack.active([0]):
        torch.testing.assert_close(y[1], model(x[1:2])[0], rtol=0, atol=1e-12)


def test_dropout_falls_on_what_is_read():
    """With B's columns summing what survives, whole entries of u are gone and the others scaled."""
    model, x = _Model(), torch.ones(2, 3, 6, dtype=torch.float64)
    adapters = attached(model, "down", "output", nonlinearity="identity", bias=False, dropout=0.5)
    adapter, seen = adapters.layer_adapter("block.down"), []
    adapter.term = lambda u: seen.append(u) or torch.zeros(2, 3, 8, dtype=torch.float64)
    adapters.train()
    z = F.linear(torch.relu(model.block.up(x)), model.block.down.weight, model.block.down.bias)
    model(x)
    kept = seen[0] != 0
    assert seen[0].shape == z.shape and 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(seen[0][kept], 2 * z[kept])


@pytest.mark.parametrize("target, reads", [("down", "output"), ("block", "input"), ("norm", "norm")])
def test_saved_and_loaded(target, reads, tmp_path):
    model, x = _Model(), x_of()
    adapters = attached(model, target, reads, nonlinearity="gelu", scale=0.5)
    y = model(x)
    adapters.save(tmp_path / "a", quiet=True)
    adapters.detach()
    again = lorax.load(model, tmp_path / "a")
    assert torch.equal(model(x), y)
    again.detach()
    other = nn.Module()
    other.block = nn.ModuleDict({"down": nn.Linear(10, 9), "up": nn.Linear(6, 10), "norm": nn.LayerNorm(9)})
    with pytest.raises(UserError):
        lorax.load(other.double(), tmp_path / "a")


def test_merging_and_peft_are_refused_in_one_line(tmp_path):
    model = _Model()
    for target, reads, why in (
        ("down", "output", "cannot merge block.down: its adapter is no change of the weight"),
        ("block", "input", "block is an adapted module, not a linear layer"),
        ("norm", "norm", "block.norm is an adapted module, not a linear layer"),
    ):
        adapters = attached(model, target, reads)
        with pytest.raises(UserError, match=why):
            adapters.merge()
        with pytest.raises(
            UserError, match="PEFT has no such type, and the format of the library `adapters`"
        ) as caught:
            adapters.export_peft(tmp_path / "peft")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 and not (tmp_path / "peft").exists()
        adapters.detach()


def test_a_copied_model_keeps_its_own_norm():
    import copy

    model, x = _Model(), x_of()
    attached(model, "norm", "norm")
    other = copy.deepcopy(model)
    y = model(x)
    with torch.no_grad():
        model.block.norm.weight.mul_(2)
    assert torch.equal(other(x), y) and not torch.equal(model(x), y)


def test_autocast_keeps_the_dtype_of_the_base():
    model, x = _Model().float(), x_of(dtype=torch.float32)
    for target, reads in (("down", "output"), ("block", "input"), ("norm", "norm")):
        with torch.autocast("cpu", torch.bfloat16):
            base = model(x)
            adapters = lorax.attach(model, init=READING[reads], rank=3, targets=[target])
            y = model(x)
            assert y.dtype == base.dtype and torch.equal(y, base)
        adapters.detach()


def test_the_reduction_gives_the_rank():
    model = _Model()
    assert attached(model, "down", reduction=3).layer_adapter("block.down").A.shape == (2, 8)
    assert build("pfeiffer", own={"reduction": 16}).count(384, 384) == 24 * 768 + 24 + 384
    assert build("pfeiffer", own={"reduction": 100}).width(8) == 1
    assert lorax.initializers.registry.consumed(build("houlsby", own={"reduction": 2, "rank": 3}))["reduction"] == 2
    assert "rank" not in lorax.initializers.registry.consumed(build("houlsby", own={"reduction": 2}))


@pytest.mark.parametrize(
    "fields, line",
    [
        ({"rank": 0}, "rank=0: a positive whole number"),
        ({"reduction": 0.5}, "reduction=0.5: at least 1"),
        ({"reduction": float("inf")}, "reduction=inf: a finite number"),
        ({"scale": 0}, "scale=0: a finite number above 0"),
        ({"nonlinearity": "swish"}, "nonlinearity=swish is unknown"),
        ({"bias": 1}, "bias=1: true or false"),
    ],
)
def test_wrong_values(fields, line):
    for method in METHODS:
        with pytest.raises(UserError, match=line):
            build(method, own=fields)
    with pytest.raises(UserError, match="norm=twice is unknown"):
        build("pfeiffer", own={"norm": "twice"})


def test_wrong_places():
    model = _Model()
    with pytest.raises(UserError, match="layer block.down: rank=9 exceeds 8"):
        lorax.attach(model, init="houlsby", rank=9, targets=["down"])
    model.block.act = nn.ReLU()
    with pytest.raises(UserError, match="block.act .ReLU.: a linear layer, a norm or a module with linear layers"):
        lorax.attach(model, init="houlsby", rank=2, targets=["act"])
    model.parts = nn.ModuleList([nn.Linear(6, 6)])
    with pytest.raises(UserError, match="parts is a ModuleList, which is not called"):
        lorax.attach(model, init="houlsby", rank=2, targets=["parts"])
    plan = make_factors(model, build("pfeiffer", shared={"rank": 2}), ["norm"])["block.norm"]
    with pytest.raises(UserError, match="block.down is Linear, where the adapter needs a layer norm"):
        install(model, {"block.down": plan})
    with pytest.raises(UserError, match="block.up: the adapter reads 8 and writes 8 numbers, the site 10 and 10"):
        install(model, {"block.up": plan})


def test_the_lists_agree():
    assert tuple(NONLINEARITIES) == shared.NONLINEARITIES


def test_plain_operations_are_the_only_ones():
    model, x = _Model(), x_of()
    attached(model, "down")
    y = model(x)
    with reference_mode():
        assert torch.equal(model(x), y)
