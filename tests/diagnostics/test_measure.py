"""measure: everything of one arm, on a toy model that trained a few steps."""

import json
from dataclasses import replace

import pytest
import torch

from lorax.adapters.baselines import Frozen, FullModel
from lorax.adapters.install import find_targets, install
from lorax.adapters.kinds import effective
from lorax.api import attach, make_factors
from lorax.diagnostics.alignment import measure_init
from lorax.diagnostics.measure import base_gradients, measure
from lorax.errors import UserError
from lorax.initializers.registry import build
from lorax.models.registry import load
from lorax.records import RunRecord
from lorax.tasks.base import Example, Task

TEXT = {"forgetting_tokens": 200, "window": 64}


def example(number):
    return Example(str(number), f"What is {number} + 1?", str(number + 1))


@pytest.fixture(scope="module")
def task():
    return Task(name="add", kind="generation", train=tuple(map(example, range(24))), validation=(), test=())


@pytest.fixture(scope="module")
def toy():
    return load({"name": "toy"})


def descend(adapters, loaded, steps=2, lr=1e-2):
    """A few plain steps on random rows: enough to move."""
    opt = torch.optim.SGD(adapters.parameters(), lr=lr)
    rows = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        opt.zero_grad()
        loaded.model(input_ids=rows, labels=rows).loss.backward()
        opt.step()
    opt.zero_grad()


def test_an_arm_from_first_step_to_forgetting(toy, task):
    before = {key: value.clone() for key, value in toy.model.state_dict().items()}
    factors = make_factors(toy.model, build("pissa", shared={"rank": 4}), find_targets(toy.model))
    adapters = install(toy.model, factors)
    gradients = base_gradients(toy, task, adapters, adapters.names())
    descend(adapters, toy)
    again = base_gradients(toy, task, adapters, adapters.names())
    assert all(torch.equal(again[name], gradients[name]) for name in gradients)  # of W0, whatever trained
    full = {name: -gradient for name, gradient in gradients.items()}
    found = measure(toy, task, adapters, factors=factors, full_delta=full, **TEXT)
    assert found["cosine_final"] == found["cosine_final_gradient"] and found["overall"]["cosine_final"] < 1
    assert 0 < found["cosine_first"] <= found["optimum_2r"] <= 1 and found["reach"] >= found["cosine_first"]
    assert found["relative_norm"] > 0 and 1 <= found["stable_rank"] <= found["effective_rank"] <= 8.01
    assert found["forgetting"] == found["forgetting_text"]["change"] != 0
    assert found["about"]["n_measured"] == len(found["layers"]["names"]) == 14
    init = measure_init(factors, gradients)
    assert init["layers"]["cosine_first"] == found["layers"]["cosine_first"]
    record = RunRecord("id", "name", "finished", {}, {}, diagnostics=json.loads(json.dumps(found)))
    assert RunRecord.from_json(record.to_json()).diagnostics["kinds"]["mlp.up_proj"]
    adapters.detach()
    assert all(torch.equal(value, before[key]) for key, value in toy.model.state_dict().items())


def test_full_fine_tuning_needs_no_factors_and_agrees_with_itself(toy, task):
    targets = list(find_targets(toy.model))
    arm = FullModel(toy.model, find_targets(toy.model, ["q_proj"]))
    gradients = base_gradients(toy, task, arm, arm.names())
    for name, gradient in gradients.items():
        toy.model.get_submodule(name).weight.data -= 0.1 * gradient
    found = measure(toy, task, arm, full_delta=arm.delta(), **TEXT)
    assert found["cosine_first"] == found["cosine_final"] == pytest.approx(1)
    assert found["cosine_final_gradient"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(UserError, match="is not adapted"):
        measure(toy, task, arm, targets=targets, **TEXT)
    arm.detach()


def test_a_frozen_base_has_nothing_but_zero_forgetting(toy, task):
    arm = attach(toy.model, init="none")
    found = measure(toy, task, arm, **TEXT)
    assert found["forgetting"] == 0 and "cosine_first" not in found
    arm.detach()


def test_layers_are_sampled_by_kind(toy):
    adapters = attach(toy.model, init="lora", rank=2)
    found = measure(toy, None, adapters, layers=2, forgetting_tokens=0)
    names = found["layers"]["names"]
    assert len(names) == 7 and all(".0." in name for name in names) and len(found["kinds"]) == 7
    assert found["relative_norm"] == 0 and found["forgetting"] is None and found["effective_rank"] is None
    adapters.detach()


def test_classification_heads_have_trained_so_gradients_must_be_given(task):
    loaded = load({"name": "toy"}, labels=["a", "b"])
    adapters = attach(loaded.model, init="lora", rank=2)
    assert base_gradients(loaded, task, adapters, adapters.names()) == {}
    found = measure(loaded, task, adapters)
    assert found["forgetting"] is None and found["cosine_final_gradient"] is None


@pytest.mark.parametrize("recenter", ["carry", "fold"])
def test_gradients_are_those_of_w0_on_conv1d_too(toy, task, recenter):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=261)).double().eval()
    loaded = replace(toy, model=model)
    targets = find_targets(model)
    expected = base_gradients(loaded, task, Frozen(model), list(targets))
    adapters = attach(model, init="pissa", rank=2, recenter=recenter)
    found = base_gradients(loaded, task, adapters, adapters.names())
    for name, module in targets.items():
        assert torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-12), name
        assert found[name].shape == effective(module).shape == adapters.delta([name])[name].shape
    adapters.detach()
