"""Methods that train one matrix between or beside frozen ones: LoRA-FA, MiSS, LoRA-SB."""

import peft
import pytest
import torch
from oracles import M, N, R, best, close, cosine, factors, gradient, layer, regression
from peft.optimizers.lorafa import LoraFAOptimizer
from torch import nn

import lorax
from lorax.errors import UserError
from lorax.initializers.registry import build


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def twins(config, **fields):
    """One base under our adapters and under PEFT's, and what they are trained on, in float64."""
    ours, theirs = nn.Sequential(nn.Linear(N, M)).double(), nn.Sequential(nn.Linear(N, M)).double()
    theirs.load_state_dict(ours.state_dict())
    adapters = lorax.attach(ours, rank=R, **fields)
    return ours, adapters, peft.get_peft_model(theirs, config, autocast_adapter_dtype=False), randn(30, N), randn(30, M)


def test_lora_fa_is_lora_of_which_b_trains():
    model, (loss, batches) = layer(), regression()
    lora, given = factors(model, "lora", seed=3), factors(model, "lora_fa", seed=3)
    assert torch.equal(given.A, lora.A) and given.trainable == {"B"} and given.eta == lora.eta
    adapters = lorax.attach(model, init="lora_fa", rank=R)
    A = adapters.state_dict()["0.A"].clone()
    loss(model, batches[0]).backward()
    torch.optim.SGD(adapters.parameters(), lr=1e-3).step()
    step = -1e-3 * given.eta**2 * gradient(layer_like(model), loss, batches) @ A.T @ A
    close(adapters.delta()["0"].double(), step, 1e-6)
    assert torch.equal(adapters.state_dict()["0.A"], A)


def layer_like(adapted):
    """The plain layer under adapters."""
    plain = layer()
    plain[0].weight.data = adapted[0].weight.detach().clone()
    return plain


def test_the_projected_gradient_moves_the_weight_by_the_projection_of_its_own():
    model, (loss, batches) = layer(), regression()
    method = build("lora_fa", shared={"rank": R, "alpha": 5.0}, own={"projected": True})
    with pytest.warns(UserWarning, match="init=lora_fa acts while it trains"):
        adapters = lorax.attach(model, init=method)
    loss(model, batches[0]).backward()
    adapters.rule.after_backward(None, adapters)
    torch.optim.SGD(adapters.parameters(), lr=1e-3).step()
    rows = torch.linalg.qr(adapters.state_dict()["0.A"].T).Q
    G = gradient(layer_like(model), loss, batches)
    close(adapters.delta()["0"].double(), -1e-3 * G @ rows @ rows.T, 1e-6)


def test_the_projected_rule_is_pefts_optimiser():
    """Over 15 steps; PEFT's own 1e-8 on A A^T and eps before its bias correction are what is left of a difference."""
    config = peft.LoraConfig(r=R, lora_alpha=2 * R, target_modules=["0"])
    with pytest.warns(UserWarning, match="acts while it trains"):
        ours, adapters, theirs, x, y = twins(config, init="lora_fa", alpha=2 * R, projected=True)
    layer = theirs.base_model.model[0]
    layer.lora_A["default"].weight.data = adapters.state_dict()["0.A"].clone()
    layer.lora_A["default"].weight.requires_grad_(False)
    factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    group = {"params": factors, "names": ["0.lora_A", "0.lora_B"], "scaling_factors": [2.0, 2.0]}
    optimisers = torch.optim.Adam(adapters.parameters(), lr=1e-2, eps=1e-15), LoraFAOptimizer([group], 1e-2, eps=1e-15)
    for _ in range(15):
        for model, optimiser in zip((ours, theirs), optimisers, strict=True):
            optimiser.zero_grad()
            (model(x) - y).square().mean().backward()
            if model is ours:
                adapters.rule.after_backward(None, adapters)
            optimiser.step()
    assert float((ours(x) - theirs(x)).detach().abs().max()) < 1e-6


@pytest.mark.parametrize("rank", [4, 5])
def test_miss_is_pefts_over_training(rank, tmp_path):
    """64 inputs in shards of 5: the last one is filled with zeros."""
    config = peft.MissConfig(r=rank, target_modules=["0"])
    ours, theirs = nn.Sequential(nn.Linear(N, M)).double(), nn.Sequential(nn.Linear(N, M)).double()
    theirs.load_state_dict(ours.state_dict())
    adapters = lorax.attach(ours, init="miss", rank=rank)
    theirs = peft.get_peft_model(theirs, config).double()
    x, y = randn(30, N), randn(30, M)
    optimisers = [torch.optim.AdamW(p, lr=1e-2) for p in (adapters.parameters(), theirs.parameters())]
    for _ in range(15):
        for model, optimiser in zip((ours, theirs), optimisers, strict=True):
            optimiser.zero_grad()
            (model(x) - y).square().mean().backward()
            optimiser.step()
    assert float((ours(x) - theirs(x)).detach().abs().max()) < 1e-12
    assert adapters.count_trainable() == sum(p.numel() for p in theirs.parameters() if p.requires_grad) == rank * M
    close(ours(x).detach(), theirs.merge_and_unload()(x).detach(), 1e-12)


def test_miss_adds_the_shards():
    given = factors(layer(3, 7), "miss", shared={"rank": 3})
    x = torch.arange(7.0, dtype=torch.float64)
    assert (given.A @ x).tolist() == [0 + 3 + 6, 1 + 4, 2 + 5] and given.eta == 1


@pytest.mark.parametrize("fields", [{}, {"alpha": 9.0}, {"step": 1e-2}])
def test_lora_sb_starts_at_the_first_signed_update_cut_to_its_rank(fields):
    model, (loss, batches) = layer(), regression()
    G = gradient(model, loss, batches)
    step, own = fields.get("step", 3e-6), {key: value for key, value in fields.items() if key == "step"}
    alpha = {"alpha": fields["alpha"]} if "alpha" in fields else {}
    given = factors(model, "lora_sb", loss=loss, batches=batches, shared=alpha, **own)
    close(given.update(), best(-step * torch.sign(G), R), 1e-10)
    assert cosine(given.update(), -G) > 0 and given.report["start"] == pytest.approx(float(given.update().norm(p=2)), 1)
    close(given.B.T @ given.B, torch.eye(R, dtype=torch.float64), 1e-12)
    close(given.A @ given.A.T, torch.eye(R, dtype=torch.float64), 1e-12)
    S = torch.linalg.svdvals(torch.sign(G))
    assert given.report["captured"] == pytest.approx(float(S[:R].norm() / S.norm()) ** 2)
    assert not given.shifts_base and not build("lora_sb").starts_at_base


def test_lora_sb_trains_by_the_projected_gradient():
    model, (loss, batches) = layer(), regression()
    adapters = lorax.attach(model, init="lora_sb", rank=R, alpha=6.0, loss=loss, batches=batches)
    state = adapters.state_dict()
    moved = layer_like(model)
    moved[0].weight.data += adapters.delta()["0"].double()
    G = gradient(moved, loss, batches)
    loss(model, batches[0]).backward()
    close(adapters.parameters()[0].grad, 1.5 * state["0.B"].T @ G @ state["0.A"].T, 1e-6)


@pytest.mark.parametrize("name", ["lora_sb", "lora_one"])
def test_a_zero_gradient_is_one_line(name):
    def flat(model, batch):
        return (0 * model(batch[0])).sum()

    with pytest.raises(UserError, match=f"layer 0: its gradient is 0 .* no direction for {name}"):
        factors(layer(), name, loss=flat, batches=regression()[1])
