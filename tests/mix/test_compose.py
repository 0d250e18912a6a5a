"""Mixtures by their equations: one expert is itself, the sum is linear, SVF's z, LoraHub's cross terms."""

import peft
import pytest
import torch
from torch import nn

import lorax
from lorax.adapters.install import install
from lorax.errors import UserError
from lorax.mix.compose import check, layers, mix
from lorax.mix.experts import hold_singular_values, read_experts

X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def saved(folder, init, seed, **fields):
    """A trained expert in a folder; returns its changes of weights and its outputs."""
    model = base()
    adapters = lorax.attach(model, init, **fields)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator))
    adapters.save(folder, quiet=True)
    return adapters.delta(), model(X)


def experts_of(tmp_path, init, count=2, **fields):
    made = [saved(tmp_path / str(seed), init, seed, **fields) for seed in range(count)]
    return read_experts(base(), [tmp_path / str(seed) for seed in range(count)]), made


def every(experts, *coefficients):
    return dict.fromkeys(layers(experts), coefficients)


def outputs(mixture):
    model = base()
    install(model, mixture)
    return model(X)


METHODS = {
    "svf": {}, "lora": {"rank": 2}, "lora_xs": {"rank": 2}, "svft": {}, "pissa": {"rank": 2},
    "svf of the code": {"param": "sigmoid", "normalise": True, "noise": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_one_expert_at_1_is_that_expert_and_sums_are_linear(method, tmp_path):
    init, fields = method.split()[0], METHODS[method]
    experts, made = experts_of(tmp_path, init, **fields)
    alone = mix(experts[:1], every(experts, 1.0), "sum")
    assert torch.equal(outputs(alone), outputs(mix(experts, every(experts, 1.0, 0.0), "sum")))
    same = torch.equal if method in ("svf", "lora", "lora_xs", "svft") else torch.allclose
    for k, unit in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        assert same(outputs(mix(experts, every(experts, *unit), "sum")), made[k][1])
    mixture = mix(experts, every(experts, 0.3, -0.8), "sum")
    for name, factors in mixture.items():
        expected = 0.3 * made[0][0][name] - 0.8 * made[1][0][name]  # delta() is float32
        torch.testing.assert_close(factors.update().float(), expected, rtol=1e-5, atol=1e-6)
    model = base()
    assert torch.equal(outputs(mix(experts, every(experts, 0.0, 0.0), "sum")), model(X))


def test_svf_mixes_z_as_the_paper_writes_it(tmp_path):
    experts, made = experts_of(tmp_path, "svf")
    model = base()
    assert hold_singular_values(model, experts)
    check(experts, "singular_values", vectors=True)
    assert torch.equal(outputs(mix(experts[:1], every(experts, 1.0), "singular_values")), made[0][1])
    mixture = mix(experts, every(experts, 0.5, 0.7), "singular_values")
    for name, factors in mixture.items():
        W0 = model.get_submodule(name).weight.detach()
        U, S, Vh = torch.linalg.svd(W0, full_matrices=False)
        z = [1 + expert.factors[name].M.values for expert in experts]
        W = (experts[0].factors[name].B * (0.5 * z[0] + 0.7 * z[1])) @ experts[0].factors[name].A
        torch.testing.assert_close(W0 + factors.update(), W, rtol=0, atol=1e-12)
        assert torch.allclose(torch.linalg.svdvals(W).sum(), (S * (0.5 * z[0] + 0.7 * z[1])).abs().sum())
    half = every(experts, 0.25, 0.75)  # of sum 1: both are one
    for name, factors in mix(experts, half, "singular_values").items():
        expected = mix(experts, half, "sum")[name].update()
        torch.testing.assert_close(factors.update(), expected, rtol=0, atol=1e-14)


def test_lorahub_has_its_cross_terms(tmp_path):
    experts, made = experts_of(tmp_path, "lora", rank=2)
    check(experts, "factors", vectors=False)
    assert torch.equal(outputs(mix(experts, every(experts, 0.0, 1.0), "factors")), made[1][1])
    mixture = mix(experts, every(experts, 0.6, -0.4), "factors")
    for name, factors in mixture.items():
        one, two = (expert.factors[name] for expert in experts)
        expected = one.eta * (0.6 * one.B - 0.4 * two.B) @ (0.6 * one.A - 0.4 * two.A)
        torch.testing.assert_close(factors.update(), expected, rtol=0, atol=1e-14)
        assert factors.rank == 2
        half = mix(experts[:1], every(experts, 0.5), "factors")[name].update()
        torch.testing.assert_close(half, one.update() / 4, rtol=0, atol=1e-14)
        summed = mix(experts, every(experts, 0.6, -0.4), "sum")[name]
        assert summed.rank == 4 and not torch.allclose(summed.update(), expected)


def test_each_layer_has_its_own_coefficients(tmp_path):
    experts, _ = experts_of(tmp_path, "svf")
    mixture = mix(experts, {"0": (1.0, 0.0), "2": (0.0, 1.0)}, "singular_values")
    assert torch.equal(mixture["0"].M.values, experts[0].factors["0"].M.values)
    assert torch.equal(mixture["2"].M.values, experts[1].factors["2"].M.values)


def test_a_saved_mixture_loads_equal_and_trains_on(tmp_path):
    for index, (init, compose) in enumerate([("svf", "singular_values"), ("lora", "sum"), ("lora", "factors")]):
        folder = tmp_path / str(index)
        experts, _ = experts_of(folder, init, **({} if init == "svf" else {"rank": 2}))
        model = base()
        adapters = install(model, mix(experts, every(experts, 0.4, 0.5), compose))
        expected = model(X)
        adapters.save(folder / "mixture", quiet=True)
        model = base()
        loaded = lorax.load(model, folder / "mixture")
        assert torch.equal(model(X), expected)
        model(X).sum().backward()
        assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_experts_that_have_no_mixture_are_one_line(tmp_path):
    saved(tmp_path / "lora", "lora", 0, rank=2)
    saved(tmp_path / "three", "lora", 0, rank=3)
    saved(tmp_path / "dora", "dora", 0, rank=2)
    saved(tmp_path / "part", "lora", 0, rank=2, targets=["2"])
    lorax.attach(base(), "full").save(tmp_path / "full", quiet=True)
    with pytest.raises(UserError, match="is no low-rank change of its weight"):
        read_experts(base(), [tmp_path / "dora"])
    with pytest.raises(UserError, match="model trained as full, no adapter"):
        read_experts(base(), [tmp_path / "full"])
    with pytest.raises(UserError, match="trained on 0 with digest"):
        read_experts(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double(), [tmp_path / "lora"])
    ranks = read_experts(base(), [tmp_path / "lora", tmp_path / "three"])
    with pytest.raises(UserError, match="has rank 3.*mix.compose=sum takes both"):
        check(ranks, "factors", vectors=False)
    assert {one.A.shape[0] for one in mix(ranks, every(ranks, 0.5, 0.5), "sum").values()} == {5}
    part = read_experts(base(), [tmp_path / "lora", tmp_path / "part"])
    with pytest.raises(UserError, match="part lacks 0"):
        check(part, "factors", vectors=False)
    with pytest.raises(UserError, match="needs SVF's vectors"):
        check(part, "singular_values", vectors=hold_singular_values(base(), part))
    mixture = mix(part, every(part, 0.5, 2.0), "sum")
    torch.testing.assert_close(mixture["0"].update(), 0.5 * part[0].factors["0"].update())


def test_pefts_adapters_and_a_folded_one_mix_with_ones_own(tmp_path):
    torch.manual_seed(3)
    theirs = peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False))
    theirs.save_pretrained(tmp_path / "theirs")
    lora, _ = saved(tmp_path / "lora", "lora", 0, rank=3)
    fold, _ = saved(tmp_path / "fold", "pissa", 1, rank=2, recenter="fold")
    experts = read_experts(base(), [tmp_path / "theirs", tmp_path / "lora", tmp_path / "fold"])
    for name, factors in mix(experts, every(experts, 0.5, -1.0, 2.0), "sum").items():
        change = theirs.get_submodule(f"base_model.model.{name}").get_delta_weight("default").detach().float()
        expected = 0.5 * change - lora[name] + 2 * fold[name]
        torch.testing.assert_close(factors.update().float(), expected, rtol=1e-5, atol=2e-6)
    config = peft.LoraConfig(r=2, target_modules=["0"], use_dora=True)
    peft.get_peft_model(base(), config).save_pretrained(tmp_path / "dora")
    with pytest.raises(UserError, match="dora: the adapter of 0 is no low-rank change"):
        read_experts(base(), [tmp_path / "dora"])
