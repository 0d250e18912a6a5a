"""measure: everything of one arm, on a toy model that trained a few steps."""

import json
from dataclasses import replace

import pytest
import torch

from lorax.adapters.baselines import FullModel
from lorax.adapters.install import find_targets, install
from lorax.adapters.kinds import effective
from lorax.api import attach, make_factors
from lorax.diagnostics.alignment import first_step_alignment
from lorax.diagnostics.layer_summary import rounded
from lorax.diagnostics.measure import References, Settings, measure
from lorax.errors import UserError
from lorax.initializers.registry import build
from lorax.models.registry import load
from lorax.probing.gradient import layer_gradients
from lorax.records import RunRecord

TEXT = {"forgetting_tokens": 200, "window": 64}


@pytest.fixture(scope="module")
def toy():
    return load({"name": "toy"})


def gradients_of(loaded, targets):
    rows = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(1))
    return layer_gradients(loaded.model, targets, None, [{"input_ids": rows, "labels": rows}])


def descend(adapters, loaded, steps=2, lr=1e-2):
    """A few plain steps on random rows: enough to move."""
    opt = torch.optim.SGD(adapters.parameters(), lr=lr)
    rows = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        opt.zero_grad()
        loaded.model(input_ids=rows, labels=rows).loss.backward()
        opt.step()
    opt.zero_grad()


def test_an_arm_from_first_step_to_forgetting(toy):
    before = {key: value.clone() for key, value in toy.model.state_dict().items()}
    targets = find_targets(toy.model)
    gradients = gradients_of(toy, targets)
    factors = make_factors(toy.model, build("pissa", shared={"rank": 4}), targets)
    adapters = install(toy.model, factors)
    descend(adapters, toy)
    full = {name: -gradient for name, gradient in gradients.items()}
    references = References(factors=factors, gradients=gradients, full_update=full)
    measured = measure(toy, adapters, Settings(**TEXT), references)
    assert measured["cosine_final"] == measured["cosine_final_gradient"] and measured["overall"]["cosine_final"] < 1
    assert 0 < measured["cosine_first"] <= measured["optimum_2r"] <= 1 and measured["reach"] >= measured["cosine_first"]
    assert measured["relative_norm"] > 0 and 1 <= measured["stable_rank"] <= measured["effective_rank"] <= 8.01
    assert measured["forgetting"] == measured["forgetting_text"]["change"] != 0
    assert measured["about"]["n_measured"] == len(measured["layers"]["names"]) == 14
    for name, value in zip(measured["layers"]["names"], measured["layers"]["cosine_first"], strict=True):
        assert value == rounded(first_step_alignment(factors[name], gradients[name], 4)["cosine_first"])
    record = RunRecord("id", "name", "finished", {}, {}, diagnostics=json.loads(json.dumps(measured)))
    assert RunRecord.from_json(record.to_json()).diagnostics["kinds"]["mlp.up_proj"]
    adapters.detach()
    assert all(torch.equal(value, before[key]) for key, value in toy.model.state_dict().items())


def test_full_fine_tuning_needs_no_factors_and_agrees_with_itself(toy):
    targets = list(find_targets(toy.model))
    gradients = gradients_of(toy, find_targets(toy.model, ["q_proj"]))
    arm = FullModel(toy.model, find_targets(toy.model, ["q_proj"]))
    for name, gradient in gradients.items():
        toy.model.get_submodule(name).weight.data -= 0.1 * gradient
    references = References(gradients=gradients, full_update=arm.delta())
    measured = measure(toy, arm, Settings(**TEXT), references)
    assert measured["cosine_first"] == measured["cosine_final"] == pytest.approx(1)
    assert measured["cosine_final_gradient"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(UserError, match="is not adapted"):
        measure(toy, arm, Settings(targets=targets, **TEXT), references)
    arm.detach()


def test_a_frozen_base_has_nothing_but_zero_forgetting(toy):
    arm = attach(toy.model, init="none")
    measured = measure(toy, arm, Settings(**TEXT), References())
    assert measured["forgetting"] == 0 and "cosine_first" not in measured
    arm.detach()


def test_layers_are_sampled_by_kind(toy):
    adapters = attach(toy.model, init="lora", rank=2)
    measured = measure(toy, adapters, Settings(every=2, forgetting_tokens=0), References())
    names = measured["layers"]["names"]
    assert len(names) == 7 and all(".0." in name for name in names) and len(measured["kinds"]) == 7
    assert measured["relative_norm"] == 0 and measured["forgetting"] is None and measured["effective_rank"] is None
    adapters.detach()


def test_what_is_not_known_is_not_measured_and_a_missing_gradient_is_named(toy):
    targets = find_targets(toy.model)
    factors = make_factors(toy.model, build("lora", shared={"rank": 2}), targets)
    adapters = install(toy.model, factors)
    settings = Settings(forgetting_tokens=0)
    measured = measure(toy, adapters, settings, References(factors=factors))
    assert (
        measured["cosine_final_gradient"] is None
        and measured["cosine_final"] is None
        and "cosine_first" not in measured
    )
    gradients = gradients_of(toy, dict([targets.popitem()]))
    with pytest.raises(UserError, match="no gradient for layer"):
        measure(toy, adapters, settings, References(factors=factors, gradients=gradients))
    adapters.detach()


@pytest.mark.parametrize("recenter", ["carry", "fold"])
def test_conv1d_is_measured_as_m_by_n_against_w0(toy, recenter):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=261)).double().eval()
    loaded = replace(toy, model=model)
    targets = find_targets(model)
    W0 = {name: effective(module).clone() for name, module in targets.items()}
    adapters = attach(model, init="pissa", rank=2, recenter=recenter)
    descend(adapters, loaded)
    measured = measure(loaded, adapters, Settings(forgetting_tokens=0), References())
    for name, norm in zip(measured["layers"]["names"], measured["layers"]["relative_norm"], strict=True):
        delta = adapters.delta([name])[name]
        assert delta.shape == W0[name].shape
        assert norm == pytest.approx(float(delta.norm() / W0[name].norm()), rel=1e-5)
    adapters.detach()
