"""Methods that train vectors: SVF against its formula and SVFT, DoRA and VeRA against PEFT, in float64."""

import peft
import pytest
import torch
from oracles import M, N, R, close, factors, gradient, layer, regression
from torch import nn

import lorax
from lorax.adapters.vectors.shared_matrices import _draw
from lorax.errors import UserError
from lorax.initializers.registry import build

REFERENCE = {"param": "sigmoid", "normalise": True}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def svd(model):
    return torch.linalg.svd(model[0].weight.detach().double(), full_matrices=False)


def fit(model, parameters, x, y, steps=15):
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        (model(x) - y).square().mean().backward()
        optimiser.step()


# --- SVF


@pytest.mark.parametrize("m,n", [(M, N), (N, M)])
def test_svf_scales_the_singular_values_and_nothing_else(m, n):
    model = layer(m, n)
    U, S, Vh = svd(model)
    x, plain = randn(9, n), model[0].weight.detach().clone()
    adapters = lorax.attach(model, init="svf")
    z = 1 + 0.3 * randn(len(S))
    adapters.parameters()[0].data.copy_(z - 1)
    close(model(x).detach(), x @ (U @ torch.diag(S * z) @ Vh).T, 1e-12)
    changed = plain + adapters.delta()["0"].double()
    close((U.T @ changed @ Vh.T).diagonal(), S * z, 1e-6)
    assert adapters.count_trainable() == min(m, n) == build("svf").count(m, n)


def test_svf_is_svft_with_relative_steps():
    model, (loss, batches) = layer(), regression()
    U, S, Vh = svd(model)
    G = gradient(model, loss, batches)
    adapters = lorax.attach(model, init="svf")
    loss(model, batches[0]).backward()
    d = adapters.parameters()[0]
    close(d.grad, S * ((U.T @ G) * Vh).sum(1), 1e-10)
    d.data.copy_(randn(len(S)))
    delta, m = adapters.delta()["0"], S * d.detach()
    adapters.detach()
    other = lorax.attach(model, init="svft")
    other.parameters()[0].data.copy_(m)
    close(delta.double(), other.delta()["0"].double(), 1e-6)


def test_svf_takes_the_inputs_gradient_from_the_singular_values():
    """Its A has rows of length S; the shared products know that, and give autograd's gradient."""
    model, x = layer().float(), torch.randn(4, N, requires_grad=True)
    adapters = lorax.attach(model, init="svf")
    adapters.parameters()[0].data.normal_()
    layer_ = adapters.layer("0")
    sigma = layer_._singular_values(layer_.grouping(), x, layer_.weight)
    torch.testing.assert_close(sigma, torch.ones(M), rtol=1e-4, atol=1e-4)
    g = torch.randn(4, M)
    (dx,) = torch.autograd.grad(model(x), x, g)
    whole = layer_.weight + adapters.delta()["0"]
    torch.testing.assert_close(dx, g @ whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [REFERENCE, {"normalise": True}])
def test_the_normalised_form_keeps_the_sum_of_singular_values(fields):
    model = layer()
    U, S, Vh = svd(model)
    x = randn(5, N)
    before = model(x).detach()
    adapters = lorax.attach(model, init="svf", **fields)
    assert torch.equal(model(x).detach(), before)  # all z alike are the base, whatever they are
    p = adapters.parameters()[0]
    with torch.no_grad():
        p.add_(0.7)
        assert float((model(x) - before).abs().max()) < 1e-12
        p.add_(0.3 * randn(len(S)))
    z = torch.sigmoid(p.detach()) if "param" in fields else 1 + p.detach()
    close(model(x).detach(), x @ (U @ torch.diag(S * z * S.sum() / (S * z).sum()) @ Vh).T, 1e-11)
    W = model[0].weight + adapters.delta()["0"]
    assert float((U.T @ W.detach().double() @ Vh.T).diagonal().sum()) == pytest.approx(float(S.sum()), rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: model(x), (x.clone().requires_grad_(True),))
    assert torch.autograd.gradcheck(lambda _: model(x), (p,))


def test_the_authors_noise_is_declared():
    model, x = layer(), randn(5, N)
    before = model(x).detach()
    method = build("svf", own={**REFERENCE, "noise": 0.01})
    lorax.attach(model, method, seed=1)
    off = float((model(x).detach() - before).norm() / before.norm())
    assert not method.starts_at_base and build("svf", own=REFERENCE).starts_at_base and 1e-3 < off < 2e-2


# --- DoRA


@pytest.mark.parametrize("bias", [False, True])
def test_dora_is_pefts_over_training(bias):
    ours, theirs = (
        nn.Sequential(nn.Linear(N, M, bias=bias)).double(),
        nn.Sequential(nn.Linear(N, M, bias=bias)).double(),
    )
    theirs.load_state_dict(ours.state_dict())
    config = peft.LoraConfig(r=R, lora_alpha=2 * R, target_modules=["0"], use_dora=True)
    theirs = peft.get_peft_model(theirs, config, autocast_adapter_dtype=False).double()
    adapters = lorax.attach(ours, init="dora", rank=R, alpha=2 * R)
    module = theirs.base_model.model[0]
    module.lora_A["default"].weight.data = adapters.state_dict()["0.A"].clone()
    module.lora_magnitude_vector["default"].weight.data = adapters.state_dict()["0.magnitude"].clone()
    x, y = randn(30, N), randn(30, M)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == adapters.count_trainable() == R * (M + N) + M
    for model, parameters in ((ours, adapters.parameters()), (theirs, trained)):
        fit(model, parameters, x, y)
    close(ours(x).detach(), theirs(x).detach(), 1e-10)
    assert float(adapters.delta()["0"].norm()) > 0.1
    adapters.merge()
    close(ours(x).detach(), theirs.merge_and_unload()(x).detach(), 1e-10)


def test_dora_rows_have_the_trained_lengths():
    model, x, y = layer(), randn(30, N), randn(30, M)
    W0 = model[0].weight.detach().clone()
    adapters = lorax.attach(model, init="dora", rank=R)
    magnitude = adapters.state_dict()["0.magnitude"]
    assert torch.equal(adapters.layer_adapter("0").scales(lambda: W0).detach(), torch.ones(M, dtype=torch.float64))
    close(magnitude, W0.norm(dim=1), 1e-14)
    fit(model, adapters.parameters(), x, y)
    changed = W0 + adapters.layer_adapter("0").delta(lambda: W0).detach()
    close(changed.norm(dim=1), adapters.state_dict()["0.magnitude"], 1e-12)


def test_dora_drops_the_low_rank_path_alone():
    model, x = layer(), randn(200, N)
    adapters = lorax.attach(model, init="dora", rank=R, dropout=0.5)
    adapters.parameters()[-1].data.mul_(
        1.5
    )  # the lengths, with B = 0: nothing that is dropped has a part in the output
    with torch.no_grad():
        close(model(x), x @ (1.5 * model[0].weight).T, 1e-12)


def test_dora_refuses_a_row_without_direction_and_a_rank_of_its_export(tmp_path):
    with pytest.raises(UserError, match="rank=2: the lengths of DoRA's rows"):
        lorax.attach(layer(), init="dora", rank=R).export_peft(tmp_path / "peft", rank=2)
    assert not (tmp_path / "peft").exists()
    model = layer()
    model[0].weight.data[5] = 0
    with pytest.raises(UserError, match="layer 0: row 5 of its weight is zero"):
        lorax.attach(model, init="dora", rank=R)


# --- VeRA


def test_vera_is_pefts_over_training_on_the_same_matrices():
    ours, theirs = nn.Sequential(nn.Linear(N, M)).double(), nn.Sequential(nn.Linear(N, M)).double()
    theirs.load_state_dict(ours.state_dict())
    theirs = peft.get_peft_model(theirs, peft.VeraConfig(r=R, target_modules=["0"], save_projection=True)).double()
    adapters = lorax.attach(ours, init="vera", rank=R)
    module, adapter = theirs.base_model.model[0], adapters.layer_adapter("0")
    module.vera_lambda_d["default"].data.fill_(0.1)  # theirs was 0.1 in float32
    for name, theirs_ in (("A", module.vera_A["default"]), ("B", module.vera_B["default"])):
        mine = adapter.get_buffer(name)
        assert mine.shape == theirs_.shape and float(mine.std() / theirs_.std()) == pytest.approx(1, rel=0.1)
        setattr(adapter, name, theirs_.detach().clone())
    x, y = randn(30, N), randn(30, M)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == adapters.count_trainable() == M + R
    for model, parameters in ((ours, adapters.parameters()), (theirs, trained)):
        fit(model, parameters, x, y)
    close(ours(x).detach(), theirs(x).detach(), 1e-12)


def test_all_layers_take_their_part_of_one_pair_of_matrices():
    model = nn.ModuleDict({"a": nn.Linear(7, 9), "b": nn.Linear(12, 5), "c": nn.Linear(7, 5)})
    adapters = lorax.attach(model, init="vera", rank=3, key=7, seed=4)
    a, b, c = (adapters.layer_adapter(name) for name in "abc")
    assert a.A is c.A and b.B is c.B
    torch.testing.assert_close(b.A[:, :7] * 12**0.5, a.A * 7**0.5)
    torch.testing.assert_close(a.B[:5], b.B)
    assert torch.equal(_draw(7, 3, 5, False), _draw(7, 3, 9, False)[:5])
    other = nn.ModuleDict({"a": nn.Linear(7, 9)})
    assert not torch.equal(lorax.attach(other, init="vera", rank=3, key=8).layer_adapter("a").A, a.A)


def test_vera_saves_the_key_in_place_of_the_matrices(tmp_path, monkeypatch):
    model, x = layer(), randn(5, N)
    adapters = lorax.attach(model, init="vera", rank=500)
    for p in adapters.parameters():
        p.data.add_(0.1 * randn(*p.shape))
    assert sorted(adapters.state_dict()) == ["0.b", "0.d"] and adapters.save(tmp_path, quiet=True) < 20_000
    fresh = layer()
    fresh.load_state_dict({"0.weight": model[0].weight})
    lorax.load(fresh, tmp_path)
    assert torch.equal(fresh(x), model(x))
    monkeypatch.setattr("lorax.adapters.vectors.shared_matrices._fingerprint", lambda key, r: "other")
    again = layer()
    again.load_state_dict({"0.weight": model[0].weight})
    with pytest.raises(UserError, match="key=0 gives other random matrices with this version of torch"):
        lorax.load(again, tmp_path)


def test_vera_may_be_wider_than_its_layer():
    given = factors(layer(4, 6), "vera", shared={"rank": 50})
    assert given.count_trainable() == 54
